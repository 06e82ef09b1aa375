#include "stages/export/file_plan.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "comm/together.h"
#include "stages/quantize/methods.h"
#include "stages/store/block_record.h"

namespace roundhouse {
namespace {

// The attributes of a block's record that say how its linears are quantized, for all ranks to plan by: a line of JSON.
std::string scheme_line(int block, nlohmann::json attributes) {
  for (nlohmann::json& linear : attributes["linears"]) linear.erase("record");
  const nlohmann::json line = {
      {"at", block}, {"version", attributes["version"]}, {"linears", attributes["linears"]}};
  return line.dump() + "\n";
}

// Of all ranks' lines one array, block by block.
std::string in_order(const std::vector<std::vector<std::byte>>& lines_of_ranks) {
  std::map<int, nlohmann::json> by_block;
  for (const std::string& text : lines_of(lines_of_ranks)) {
    nlohmann::json line = nlohmann::json::parse(text);
    const int block = line.at("at").get<int>();
    by_block[block] = std::move(line);
  }
  nlohmann::json all = nlohmann::json::array();
  for (auto& [block, line] : by_block) all.push_back(std::move(line));
  return all.dump();
}

}  // namespace

FilePlan::FilePlan(const ExportJob& job, const nlohmann::json& attributes)
    : job_(job),
      units_(job.decoder, static_cast<int>(job.model.config().blocks), job.recipe.include),
      outer_(outer_layout(job.model.config())) {
  for (int block = 0; block < units_.count(); ++block) {
    const DecoderBlock& decoder = units_.of(block);
    const auto recorded =
        schemes_from_attributes(attributes.at(static_cast<std::size_t>(block)), decoder);
    for (std::size_t i = 0; i < recorded.size(); ++i) {
      const LinearSpec& spec = decoder.linears()[i];
      const std::string module = decoder.module(block, i);
      linears_.push_back({.module = module,
                          .spec = spec,
                          .scheme = announced(recorded[i].scheme, spec, module),
                          .sparse_entries = recorded[i].sparse_entries});
    }
  }
  container_ = job_.format.container({.model = job_.model,
                                      .recipe = job_.recipe,
                                      .format = job_.format,
                                      .linears = linears_,
                                      .untied = unties()});
  cut(list_pieces());
}

const ExportedLinear& FilePlan::exported(int block, std::size_t linear) const {
  return linears_[static_cast<std::size_t>(block) * job_.decoder.linears().size() + linear];
}

DType FilePlan::declared_type() const {
  if (job_.options.dtype) return *job_.options.dtype;
  std::set<DType> types;
  for (const std::vector<Piece>& pieces : pieces_) {
    for (const Piece& piece : pieces) {
      if (!piece.source.empty()) types.insert(piece.type);
    }
  }
  return types.size() == 1 ? *types.begin() : job_.model.config().dtype;
}

DType FilePlan::type_of(const std::string& source) const {
  return job_.options.dtype.value_or(job_.model.checkpoint().view(source).type);
}

// Under its own name, or another.
void FilePlan::add_kept(std::vector<Piece>& pieces, const std::string& name, int block,
                        const std::string& as) const {
  const HostView view = job_.model.checkpoint().view(name);
  if (view.type != DType::kF32 && view.type != DType::kF16 && view.type != DType::kBF16) {
    throw InputError(job_.model.checkpoint().directory().string() + ": " + name + " is " +
                     std::string(name_of(view.type)) + ", not a floating-point tensor");
  }
  Piece piece;
  piece.tensors = {container_->kept({as.empty() ? name : as, type_of(name), view.shape})};
  piece.type = piece.tensors.front().type;
  piece.source = name;
  piece.block = block;
  pieces.push_back(std::move(piece));
}

// What becomes of a linear outside the blocks, the head or the embedding; nothing: it stays as it is.
std::optional<std::size_t> FilePlan::quantized_outside(bool head) const {
  const DecoderBlock* const outer = units_.outer();
  for (std::size_t i = 0; outer != nullptr && i < outer->linears().size(); ++i) {
    const bool is_head = outer->linears()[i].name == kOuterLinears.back();
    if (is_head == head && !exported(units_.blocks(), i).scheme.is_original()) return i;
  }
  return std::nullopt;
}
bool FilePlan::unties() const {
  return outer_.head == outer_.embedding && (quantized_outside(true) || quantized_outside(false));
}

// `source`: the tensor of the checkpoint.
void FilePlan::add_linear(std::vector<Piece>& pieces, const std::string& source, int block,
                          std::size_t linear) const {
  Piece piece;
  piece.block = block;
  piece.linear = linear;
  piece.type = type_of(source);
  const ExportedLinear& one = exported(block, linear);
  for (TensorInfo& tensor : job_.format.tensors(one, piece.type))
    piece.tensors.push_back(container_->of_linear(one, std::move(tensor)));
  pieces.push_back(std::move(piece));
}

std::vector<Piece> FilePlan::list_pieces() const {
  std::vector<Piece> pieces;
  const auto keep = [&](const std::vector<TensorInfo>& tensors) {
    for (const TensorInfo& tensor : tensors) {
      const bool head = tensor.name != outer_.embedding;
      std::optional<std::size_t> quantized;
      if (tensor.name == outer_.embedding || tensor.name == outer_.head)
        quantized = quantized_outside(head);
      if (quantized) {
        add_linear(pieces, tensor.name, units_.blocks(), *quantized);
      } else {
        add_kept(pieces, tensor.name);
      }
    }
  };
  const ModelConfig& config = job_.model.config();
  keep(tensors_before_blocks(config));
  for (int block = 0; block < static_cast<int>(config.blocks); ++block) {
    const std::string prefix = job_.decoder.prefix(block) + ".";
    std::set<std::string> weights;
    for (std::size_t i = 0; i < job_.decoder.linears().size(); ++i) {
      const LinearSpec& linear = job_.decoder.linears()[i];
      weights.insert(prefix + linear.name + ".weight");
      if (exported(block, i).scheme.is_original()) {
        add_kept(pieces, prefix + linear.name + ".weight", block);
        continue;
      }
      add_linear(pieces, prefix + linear.name + ".weight", block, i);
    }
    // Norms and biases.
    for (const TensorInfo& tensor : tensors_of_block(config, block)) {
      if (!weights.contains(tensor.name)) add_kept(pieces, tensor.name, block);
    }
  }
  keep(tensors_after_blocks(config));
  for (Container::Own& own : container_->own_tensors()) {
    Piece& piece = pieces.emplace_back();
    piece.tensors = {{own.name, own.values.type(), own.values.shape()}};
    piece.source = own.name;
    piece.type = own.values.type();
    piece.made = std::move(own.values);
  }
  if (unties()) {
    if (const auto head = quantized_outside(true)) {
      add_linear(pieces, outer_.embedding, units_.blocks(), *head);
    } else {
      add_kept(pieces, outer_.embedding, -1, std::string(kOuterLinears.back()) + ".weight");
    }
  }
  return pieces;
}

// First fit in order: a file ends where the next piece would exceed the limit. A piece above it
// has its own file.
void FilePlan::cut(std::vector<Piece> pieces) {
  std::int64_t in_file = 0;
  for (Piece& piece : pieces) {
    const std::int64_t bytes = piece.bytes();
    if (files_.empty() || in_file + bytes > job_.options.max_shard_bytes) {
      files_.emplace_back();
      pieces_.emplace_back();
      in_file = 0;
    }
    in_file += bytes;
    std::ranges::copy(piece.tensors, std::back_inserter(files_.back().tensors));
    pieces_.back().push_back(std::move(piece));
  }
  for (std::size_t i = 0; i < files_.size(); ++i) {
    files_[i].name = files_.size() == 1 ? "model" + container_->ending()
                                        : fmt::format("model-{:05}-of-{:05}{}", i + 1,
                                                      files_.size(), container_->ending());
  }
}

LinearScheme FilePlan::announced(const LinearScheme& is, const LinearSpec& spec,
                                 const std::string& module) const {
  const auto fits = [&](const LinearScheme& scheme) {
    if (scheme.kind != is.kind || scheme.bits != is.bits || scheme.sparse != is.sparse)
      return false;
    if (scheme.kind != LinearScheme::Kind::kUniform) return true;
    // One group a row needs no order, and the attributes of a record do not tell one.
    return scheme.grid == is.grid && scheme.group_size_for(spec.cols) == is.group_size &&
           (scheme.reordered || !is.reordered);
  };
  // What an override asks of it, or whatever the method may make.
  std::vector<LinearScheme> may_be = job_.recipe.schemes;
  if (const LinearOverride* const own = find_override(job_.recipe.overrides, module);
      own != nullptr && own->scheme) {
    may_be = {*own->scheme};
  }
  const auto found = std::ranges::find_if(may_be, fits);
  if (found != may_be.end()) return *found;
  if (!job_.format.has_scheme() && !is.is_original()) return is;
  throw Error(
      fmt::format("{} is not what recipe {} makes of a linear: {} bits, {}{}{}", module,
                  job_.recipe.name, is.bits,
                  is.is_original() ? std::string("left as it was")
                  : is.kind == LinearScheme::Kind::kTable
                      ? std::string("lookup tables")
                      : fmt::format("grid {}, group size {}", name_of(is.grid), is.group_size),
                  is.reordered ? ", reordered" : "", is.sparse ? ", with a sparse part" : ""));
}

std::unique_ptr<FilePlan> plan_files(const ExportJob& job, Communicator& world,
                                     const std::function<void()>& before) {
  std::string schemes;  // a line for each block of this rank
  const ModelUnits units(job.decoder, static_cast<int>(job.model.config().blocks),
                         job.recipe.include);
  together(world, [&] {
    for (int block = world.rank(); block < units.count(); block += world.size()) {
      const auto attributes = job.store.attributes(block_key(job.recipe.name, block));
      if (!attributes) {
        throw Error(fmt::format("recipe {}: {} is not quantized yet", job.recipe.name,
                                unit_name(block, units.blocks(), job.recipe.include)));
      }
      schemes_from_attributes(*attributes,
                              units.of(block));  // so that a fault is that of this block
      schemes += scheme_line(block, *attributes);
      job.monitor.tick();
    }
    before();
  });
  const std::string all_schemes =
      share(world, in_order(world.gather(std::as_bytes(std::span(schemes)), 0)));
  std::unique_ptr<FilePlan> plan;
  together(world,
           [&] { plan = std::make_unique<FilePlan>(job, nlohmann::json::parse(all_schemes)); });
  return plan;
}

std::vector<std::string> lines_of(const std::vector<std::vector<std::byte>>& ranks) {
  std::vector<std::string> lines;
  for (const std::vector<std::byte>& bytes : ranks) {
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (; !text.empty(); text.remove_prefix(text.find('\n') + 1))
      lines.emplace_back(text.substr(0, text.find('\n') + 1));
  }
  return lines;
}

}  // namespace roundhouse
