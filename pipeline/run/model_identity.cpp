#include "pipeline/run/model_identity.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "comm/together.h"
#include "model/architectures/tensor_names.h"
#include "pipeline/run/sealed_json.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::size_t kNamed = 5;  // tensors that a message names

// Of what is mapped: another file may have the name by now.
Json facts_of(const TensorFile& file) {
  const FileFacts& facts = file.facts();
  return {{"path", fs::weakly_canonical(file.path()).string()},
          {"bytes", facts.bytes},
          {"modified", facts.modified},
          {"changed", facts.changed}};
}

std::vector<TensorInfo> tensors_outside_blocks(const ModelConfig& config) {
  std::vector<TensorInfo> tensors = tensors_before_blocks(config);
  for (TensorInfo& tensor : tensors_after_blocks(config)) tensors.push_back(std::move(tensor));
  return tensors;
}

std::string text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// {files, contents}; nothing, and why, if there is none that could be believed.
SealedJson read_memory(const fs::path& run) {
  SealedJson memory = read_sealed_json(run / kModelFile, kModelFile);
  if (memory.object && !(memory.object->contains("files") && memory.object->contains("contents"))) {
    return {std::nullopt, "it lacks a key"};
  }
  return memory;
}

std::string list(const std::vector<std::string>& names) {
  const std::size_t named = std::min(names.size(), kNamed);
  std::string text = fmt::format("{}", fmt::join(names.begin(), names.begin() + named, ", "));
  if (names.size() > named) text += fmt::format(" and {} more", names.size() - named);
  return text;
}

}  // namespace

void ModelIdentity::settle(const std::vector<ContentsByTensor>& recorded) {
  TensorContents& contents = model_.checkpoint().contents();
  Json view;
  if (world_.rank() == 0) {
    files_ = Json::array();
    for (const TensorFile* file : model_.checkpoint().files()) files_.push_back(facts_of(*file));
    SealedJson memory = read_memory(run_);
    if (!memory.object && memory.why != "missing") {
      monitor_.say(fmt::format("{} is damaged ({}): it is made again from the model's files",
                               kModelFile, memory.why));
      monitor_.event({{"event", "damaged"}, {"record", kModelFile}, {"why", memory.why}});
    }
    view = {{"known", memory.object.has_value()},
            {"same", memory.object && memory.object->at("files") == files_},
            {"contents", memory.object ? memory.object->at("contents") : Json::object()}};
  }
  view = Json::parse(share(world_, view.dump()));

  // Where no block is kept, nothing was made of what was read before.
  const bool kept = std::ranges::any_of(recorded, [](const auto& each) { return !each.empty(); });
  if (kept) {
    std::vector<std::string> conflicts;
    const auto learn = [&](const ContentsByTensor& more) {
      for (const auto& [tensor, hash] : more) {
        if (!contents.add(tensor, hash)) conflicts.push_back(tensor);
      }
    };
    for (const ContentsByTensor& each : recorded) learn(each);
    learn(view["contents"].get<ContentsByTensor>());
    if (!conflicts.empty()) {
      throw InputError(fmt::format(
          "{}: its records were not made of one model: they differ in what they say of {}. Use "
          "another run folder",
          run_.string(), list(conflicts)));
    }
    if (!view["same"].get<bool>()) hash_again(!view["known"].get<bool>());
  }
  if (world_.rank() == 0) write();
}

void ModelIdentity::hash_again(bool all) {
  const Checkpoint& checkpoint = model_.checkpoint();
  TensorContents& contents = checkpoint.contents();
  monitor_.phase("hashing the model's files: they are not where or what they were");
  std::vector<std::string> names;
  for (const auto& [name, hash] : contents.all()) names.push_back(name);
  if (all) {
    for (const TensorInfo& tensor : tensors_outside_blocks(model_.config())) {
      if (!contents.of(tensor.name)) names.push_back(tensor.name);
    }
  }

  std::uint64_t total = 0;
  std::vector<std::uint64_t> begins;
  for (const std::string& name : names) {
    begins.push_back(total);
    if (checkpoint.has(name)) total += checkpoint.view(name).bytes.size();
  }
  const auto share = [&](int rank) {
    return total / static_cast<std::uint64_t>(world_.size()) * static_cast<std::uint64_t>(rank);
  };
  const std::uint64_t begin = share(world_.rank());
  const std::uint64_t end =
      world_.rank() + 1 == world_.size() ? total + 1 : share(world_.rank() + 1);

  Json found = {{"differ", Json::array()}, {"contents", Json::object()}};
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (begins[i] < begin || begins[i] >= end) continue;
    const std::optional<std::string> known = contents.of(names[i]);
    std::string now;
    if (checkpoint.has(names[i])) {
      const HostView view = checkpoint.view(names[i]);
      now = content_hash(view);
      release_mapped_pages(view.bytes);
    }
    if (known && *known != now) {
      found["differ"].push_back(names[i]);
    } else {
      found["contents"][names[i]] = now;
    }
    monitor_.tick();
  }

  const std::string mine = found.dump();
  std::vector<std::string> differ;
  for (const auto& bytes : world_.all_gather(std::as_bytes(std::span(mine)))) {
    const Json theirs = Json::parse(text_of(bytes));
    for (const auto& name : theirs["differ"]) differ.push_back(name.get<std::string>());
    for (const auto& [name, hash] : theirs["contents"].items()) {
      (void)contents.add(name, hash.get<std::string>());
    }
  }
  if (differ.empty()) return;
  std::ranges::sort(differ);
  throw InputError(fmt::format(
      "{}: {} of {} tensors do not hold what {} was made of: {}. Use another run folder, or put "
      "the "
      "old files back",
      checkpoint.directory().string(), differ.size(), names.size(), run_.string(), list(differ)));
}

void ModelIdentity::note_outside_blocks() {
  if (world_.rank() == 0) {
    const Checkpoint& checkpoint = model_.checkpoint();
    for (const TensorInfo& tensor : tensors_outside_blocks(model_.config())) {
      if (checkpoint.contents().of(tensor.name)) continue;
      checkpoint.note_content(tensor.name);
      release_mapped_pages(checkpoint.view(tensor.name).bytes);
      monitor_.tick();
    }
  }
  join(world_);
}

ContentsByTensor ModelIdentity::contents_of_model() {
  const Checkpoint& checkpoint = model_.checkpoint();
  std::vector<TensorInfo> tensors = tensors_outside_blocks(model_.config());
  for (std::int64_t block = 0; block < model_.config().blocks; ++block) {
    for (TensorInfo& tensor : tensors_of_block(model_.config(), block))
      tensors.push_back(std::move(tensor));
  }
  join(world_);
  int turn = 0;
  for (const TensorInfo& tensor : tensors) {
    if (checkpoint.contents().of(tensor.name) || turn++ % world_.size() != world_.rank()) continue;
    checkpoint.note_content(tensor.name);
    release_mapped_pages(checkpoint.view(tensor.name).bytes);
    monitor_.tick();
  }
  join(world_);
  ContentsByTensor contents;
  for (const TensorInfo& tensor : tensors)
    contents[tensor.name] = checkpoint.contents().of(tensor.name).value();
  return contents;
}

void ModelIdentity::learn(const ContentsByTensor& recorded) {
  std::vector<std::string> conflicts;
  for (const auto& [tensor, hash] : recorded) {
    if (!model_.checkpoint().contents().add(tensor, hash)) conflicts.push_back(tensor);
  }
  if (conflicts.empty()) return;
  throw InputError(fmt::format(
      "{}: records of the run were made of other values of {}: the files changed meanwhile, or "
      "machines have different copies of them",
      model_.checkpoint().directory().string(), list(conflicts)));
}

void ModelIdentity::join(Communicator& group) {
  TensorContents& contents = model_.checkpoint().contents();
  const std::string mine = Json(contents.all()).dump();
  std::string error;
  const auto all = group.gather(std::as_bytes(std::span(mine)), 0);
  if (group.rank() == 0) {
    std::vector<std::string> conflicts;
    for (const std::vector<std::byte>& bytes : all) {
      for (const auto& [tensor, hash] : Json::parse(text_of(bytes)).get<ContentsByTensor>()) {
        if (!contents.add(tensor, hash)) conflicts.push_back(tensor);
      }
    }
    if (!conflicts.empty()) {
      error = fmt::format(
          "{}: ranks read different values of {}: the files changed meanwhile, or machines have "
          "different copies of them",
          model_.checkpoint().directory().string(), list(conflicts));
    } else if (world_.rank() == 0) {
      write();
    }
  }
  error = share(group, error);
  if (!error.empty()) throw InputError(error);
  const Json merged = Json::parse(share(group, Json(contents.all()).dump()));
  for (const auto& [tensor, hash] : merged.items()) {
    (void)contents.add(tensor, hash.get<std::string>());
  }
}

std::string ModelIdentity::content() const {
  Xxh3 hash;
  const auto add = [&](const std::vector<TensorInfo>& tensors) {
    return std::ranges::all_of(tensors, [&](const TensorInfo& tensor) {
      const auto known = model_.checkpoint().contents().of(tensor.name);
      if (!known) return false;
      const std::string line = tensor.name + " " + *known + "\n";
      hash.update(std::as_bytes(std::span(line)));
      return true;
    });
  };
  const ModelConfig& config = model_.config();
  bool all = add(tensors_outside_blocks(config));
  for (std::int64_t block = 0; all && block < config.blocks; ++block) {
    all = add(tensors_of_block(config, block));
  }
  return all ? hash.hex() : "";
}

void ModelIdentity::write() const {
  if (!writes_) return;
  write_sealed_json(run_ / kModelFile, kModelFile,
                    {{"files", files_},
                     {"contents", model_.checkpoint().contents().all()},
                     {"content", content()}});
}

ContentsByTensor contents_of_block(const CausalLM& model, int block) {
  ContentsByTensor contents;
  std::vector<TensorInfo> tensors;
  if (block < model.config().blocks) tensors = tensors_of_block(model.config(), block);
  for (TensorInfo& tensor : tensors_outside_blocks(model.config()))
    tensors.push_back(std::move(tensor));
  for (const TensorInfo& tensor : tensors) {
    const auto known = model.checkpoint().contents().of(tensor.name);
    if (!known) throw Error("internal error: " + tensor.name + " was not read");
    contents[tensor.name] = *known;
  }
  return contents;
}

}  // namespace roundhouse
