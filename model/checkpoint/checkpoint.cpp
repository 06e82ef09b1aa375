#include "model/checkpoint/checkpoint.h"

#include <array>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/checkpoint/pytorch_file.h"
#include "model/checkpoint/safetensors.h"

namespace roundhouse {
namespace {

constexpr std::array<const char*, 2> kSingleFiles = {"model.safetensors", "pytorch_model.bin"};
constexpr std::size_t kMaxIndexBytes = std::size_t{1} << 26;

// Early LLaMA files carry the rotary frequencies, which follow from the config, and those of OPT a version number.
bool is_ignored(std::string_view tensor) {
  return tensor.ends_with(".rotary_emb.inv_freq") || tensor == "decoder.version" ||
         tensor == "model.decoder.version";
}

std::string canonical_name(const std::string& name) {
  return name.starts_with("decoder.") ? "model." + name : name;
}

bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += fmt::format("{}{}", i > 0 ? ", " : "", shape[i]);
  return text + "]";
}

}  // namespace

Checkpoint::Checkpoint(const std::filesystem::path& directory) : directory_(directory) {
  for (const std::string single : kSingleFiles) {
    if (std::filesystem::exists(directory / single)) {
      list_ = directory / single;
      const TensorFile& file = open(single);
      for (const std::string& name : file.names()) add(name, file);
      return;
    }
    if (const auto index = directory / (single + ".index.json"); std::filesystem::exists(index)) {
      list_ = index;
      read_index(index);
      return;
    }
  }
  throw InputError(directory.string() +
                   ": no model.safetensors, no pytorch_model.bin, and no index of either "
                   "(model.safetensors.index.json, pytorch_model.bin.index.json)");
}

void Checkpoint::read_index(const std::filesystem::path& index_path) {
  const nlohmann::json index = read_json_file(index_path, kMaxIndexBytes);
  const auto fail = [&](const std::string& what) {
    throw InputError(index_path.string() + ": " + what);
  };
  if (!index.is_object()) fail("not a JSON object");
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) fail("no object \"weight_map\"");
  for (const auto& [name, value] : map->items()) {
    if (is_ignored(name)) continue;
    if (!value.is_string() || !is_plain_file_name(value.get_ref<const std::string&>())) {
      fail("weight_map: tensor " + in_quotes(name) + ": " +
           (value.is_string() ? in_quotes(value.get<std::string>()) : "this") +
           " is not a plain file name");
    }
    const TensorFile& file = open(value.get<std::string>());
    if (!file.has(name))
      fail("weight_map: tensor " + in_quotes(name) + " is not in " + file.path().string());
    add(name, file);
  }
}

// Of an index, those of the other kind too: which it is is in the name.
const TensorFile& Checkpoint::open(const std::string& name) {
  auto& file = files_[name];
  if (!file && name.ends_with(".bin")) file = std::make_unique<PytorchFile>(directory_ / name);
  if (!file) file = std::make_unique<SafetensorsFile>(directory_ / name);
  return *file;
}

void Checkpoint::add(const std::string& name, const TensorFile& file) {
  if (is_ignored(name)) return;
  const auto [place, is_new] = places_.emplace(canonical_name(name), Place{&file, name});
  if (!is_new) {
    throw InputError(file.path().string() + ": tensor " + in_quotes(place->first) +
                     " is there twice, as " + in_quotes(place->second.name) + " and as " +
                     in_quotes(name));
  }
  contents_->expect({place->first});
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) names.push_back(name);
  return names;
}

bool Checkpoint::has(const std::string& name) const { return places_.contains(name); }

HostView Checkpoint::view(const std::string& name) const {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    const std::vector<std::string> nearest = nearest_words(name, names(), 3);
    throw InputError(
        list_.string() + ": no tensor " + in_quotes(name) +
        (nearest.empty() ? "" : " (the most similar that it has: " + in_quotes(nearest) + ")"));
  }
  return found->second.file->view(found->second.name);
}

std::string Checkpoint::where(const std::string& name) const {
  return places_.at(name).file->path().string() + ": tensor " + in_quotes(name);
}

HostView Checkpoint::weight(const std::string& name, const Shape& shape) const {
  const HostView found = view(name);
  const auto fail = [&](const std::string& what) { throw InputError(where(name) + ": " + what); };
  if (found.shape != shape)
    fail("shape " + shape_text(found.shape) + ", but config.json makes it " + shape_text(shape));
  if (found.type != DType::kF32 && found.type != DType::kF16 && found.type != DType::kBF16) {
    fail("type " + std::string(name_of(found.type)) +
         " is not that of a weight (F32, F16 or BF16)");
  }
  return found;
}

void Checkpoint::note_content(const std::string& name) const {
  note_content(name, content_hash(view(name)));
}

void Checkpoint::note_content(const std::string& name, const std::string& hash) const {
  if (contents_->add(name, hash)) return;
  throw InputError(where(name) +
                   ": does not hold what it held when it was read before: the file has changed. "
                   "Put the old file back, or begin again in another run folder");
}

std::vector<const TensorFile*> Checkpoint::files() const {
  std::vector<const TensorFile*> files;
  for (const auto& [name, file] : files_) files.push_back(file.get());
  return files;
}

}  // namespace roundhouse
