#include "stages/export/export.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/json_file.h"
#include "base/write_guard.h"
#include "comm/together.h"
#include "model/architectures/tensor_names.h"
#include "stages/export/format.h"
#include "stages/export/output_folder.h"
#include "stages/export/sha256sums.h"
#include "stages/export/side_files.h"
#include "stages/quantize/methods.h"
#include "stages/store/block_record.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // keeps the keys of config.json in their order

// What is never cut in two: one linear, or one tensor that stays as it is.
struct Piece {
  std::vector<TensorInfo> tensors;
  std::string source;        // tensor of the original checkpoint; empty for a linear
  DType type = DType::kF32;  // in which dense values leave
  int block = -1;            // where it is; -1: outside the blocks
  std::size_t linear = 0;    // index into DecoderBlock::linears()

  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const TensorInfo& tensor : tensors) {
      sum += element_count(tensor.shape) * static_cast<std::int64_t>(size_of(tensor.type));
    }
    return sum;
  }
};

struct OutputFile {
  std::string name;
  std::vector<Piece> pieces;
};

// Linears outside the blocks stay as they are.
std::vector<std::string> outer_modules(const ModelConfig& config) {
  const OuterLayout outer = outer_layout(config);
  std::vector<std::string> modules = {"lm_head"};  // also where it is the embedding
  for (std::string name : {outer.project_in, outer.project_out}) {
    if (!name.empty()) modules.push_back(name.substr(0, name.rfind(".weight")));
  }
  return modules;
}

// Everything an export needs to know; does the work of one rank.
class Exporter {
 public:
  Exporter(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
           RunStore& store, const ExportOptions& options, const ExportFormat& format,
           Monitor& monitor)
      : model_(model),
        decoder_(decoder),
        recipe_(recipe),
        store_(store),
        options_(options),
        format_(format),
        monitor_(monitor) {}

  // Decides what goes where, from sizes and schemes alone: the same on every rank and for any number of them. `attributes` are those
  // of the records of all blocks. Throws InputError if the format cannot hold them.
  void plan(const nlohmann::json& attributes) {
    const ModelConfig& config = model_.config();
    for (int block = 0; block < static_cast<int>(config.blocks); ++block) {
      const auto recorded =
          schemes_from_attributes(attributes.at(static_cast<std::size_t>(block)), decoder_);
      for (std::size_t i = 0; i < recorded.size(); ++i) {
        const LinearSpec& spec = decoder_.linears()[i];
        const std::string module = decoder_.prefix(block) + "." + spec.name;
        linears_.push_back({.module = module,
                            .spec = spec,
                            .scheme = announced(recorded[i].scheme, spec, module),
                            .sparse_entries = recorded[i].sparse_entries});
      }
    }
    std::vector<ExportedLinear> quantized;
    std::vector<std::string> dense = outer_modules(config);
    for (const ExportedLinear& linear : linears_) {
      if (linear.scheme.is_original()) {
        dense.push_back(linear.module);
      } else {
        quantized.push_back(linear);
      }
    }
    config_ = format_.quantization_config(recipe_, quantized, dense);
    cut(list_pieces());
  }

  const std::vector<OutputFile>& files() const { return files_; }

  void write_file(const fs::path& directory, const OutputFile& file) {
    monitor_.phase("exporting " + recipe_.name + " as " + format_.name() + ": " + file.name);
    std::vector<TensorInfo> tensors;
    for (const Piece& piece : file.pieces) {
      tensors.insert(tensors.end(), piece.tensors.begin(), piece.tensors.end());
    }
    write_atomically(directory / file.name, [&](const fs::path& temp) {
      SafetensorsWriter writer(temp, tensors, {{"format", "pt"}});
      for (const Piece& piece : file.pieces) {
        if (piece.source.empty()) {
          write_linear(writer, piece);
        } else {
          write_kept(writer, piece);
        }
        monitor_.tick();
      }
      writer.close();
    });
  }

  // All files besides the weights; returns their names.
  std::vector<std::string> write_rest(const fs::path& directory) const {
    std::vector<std::string> written;
    const auto write = [&](const std::string& name, std::string_view text) {
      write_text_atomically(directory / name, text);
      written.push_back(name);
    };
    const fs::path& source = model_.checkpoint().directory();

    if (files_.size() > 1) write("model.safetensors.index.json", index().dump(2) + "\n");

    Json config = parse_ordered_json(read_text_file(source / "config.json"),
                                     (source / "config.json").string());
    const std::string dtype(torch_name_of(declared_type()));
    config["torch_dtype"] = dtype;
    if (config.contains("dtype")) config["dtype"] = dtype;  // its name since transformers 5
    if (config_.is_null()) {
      config.erase("quantization_config");
    } else {
      config["quantization_config"] = config_;
      if (!format_.config_copy().empty()) write(format_.config_copy(), config_.dump(2) + "\n");
    }
    write("config.json", config.dump(2) + "\n");

    const SideFiles beside = side_files(source);
    for (const std::string& name : beside.carried) write(name, read_text_file(source / name));
    if (!beside.left.empty()) {
      std::string left;
      for (const std::string& path : beside.left) left += (left.empty() ? "" : ", ") + path;
      monitor_.say("not carried along from " + source.string() + ": " + left);
    }
    return written;
  }

 private:
  // What config.json says of all: the type in which readers hold the model.
  DType declared_type() const {
    if (options_.dtype) return *options_.dtype;
    std::set<DType> types;
    for (const OutputFile& file : files_) {
      for (const Piece& piece : file.pieces) {
        if (!piece.source.empty()) types.insert(piece.type);
      }
    }
    return types.size() == 1 ? *types.begin() : model_.config().dtype;
  }

  DType type_of(const std::string& source) const {
    return options_.dtype.value_or(model_.checkpoint().view(source).type);
  }

  void add_kept(std::vector<Piece>& pieces, const std::string& name, int block = -1) const {
    const HostView view = model_.checkpoint().view(name);
    if (view.type != DType::kF32 && view.type != DType::kF16 && view.type != DType::kBF16) {
      throw InputError(model_.checkpoint().directory().string() + ": " + name + " is " +
                       std::string(name_of(view.type)) + ", not a floating-point tensor");
    }
    Piece piece;
    piece.type = type_of(name);
    piece.tensors = {{name, piece.type, view.shape}};
    piece.source = name;
    piece.block = block;
    pieces.push_back(std::move(piece));
  }

  std::vector<Piece> list_pieces() const {
    std::vector<Piece> pieces;
    const auto keep = [&](const std::vector<TensorInfo>& tensors) {
      for (const TensorInfo& tensor : tensors) add_kept(pieces, tensor.name);
    };
    const ModelConfig& config = model_.config();
    keep(tensors_before_blocks(config));
    for (int block = 0; block < static_cast<int>(config.blocks); ++block) {
      const std::string prefix = decoder_.prefix(block) + ".";
      std::set<std::string> weights;
      for (std::size_t i = 0; i < decoder_.linears().size(); ++i) {
        const LinearSpec& linear = decoder_.linears()[i];
        weights.insert(prefix + linear.name + ".weight");
        if (exported_linear(block, i).scheme.is_original()) {
          add_kept(pieces, prefix + linear.name + ".weight", block);
          continue;
        }
        Piece piece;
        piece.block = block;
        piece.linear = i;
        piece.type = type_of(prefix + linear.name + ".weight");
        const ExportedLinear& exported = exported_linear(block, i);
        for (TensorInfo& tensor : format_.tensors(exported, piece.type)) {
          piece.tensors.push_back({exported.module + "." + tensor.name, tensor.type, tensor.shape});
        }
        pieces.push_back(std::move(piece));
      }
      // Norms and biases.
      for (const TensorInfo& tensor : tensors_of_block(config, block)) {
        if (!weights.contains(tensor.name)) add_kept(pieces, tensor.name, block);
      }
    }
    keep(tensors_after_blocks(config));
    return pieces;
  }

  // First fit in order: a file ends where the next piece would exceed the limit. A piece above it
  // has its own file.
  void cut(std::vector<Piece> pieces) {
    std::int64_t in_file = 0;
    for (Piece& piece : pieces) {
      const std::int64_t bytes = piece.bytes();
      if (files_.empty() || in_file + bytes > options_.max_shard_bytes) {
        files_.emplace_back();
        in_file = 0;
      }
      in_file += bytes;
      total_bytes_ += bytes;
      files_.back().pieces.push_back(std::move(piece));
    }
    if (files_.size() == 1) {
      files_.front().name = "model.safetensors";
      return;
    }
    for (std::size_t i = 0; i < files_.size(); ++i) {
      char name[64];
      std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", i + 1, files_.size());
      files_[i].name = name;
    }
  }

  Json index() const {
    std::map<std::string, std::string> file_of;
    for (const OutputFile& file : files_) {
      for (const Piece& piece : file.pieces) {
        for (const TensorInfo& tensor : piece.tensors) file_of[tensor.name] = file.name;
      }
    }
    return {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", file_of}};
  }

  // Keeps the last block: pieces come block by block.
  const QuantizedBlock& load_block(int block) {
    if (!block_ || block_->block != block) {
      block_.reset();
      const std::optional<Record> record = store_.load(block_key(recipe_.name, block));
      if (!record) {
        throw Error("recipe " + recipe_.name + ": block " + std::to_string(block) +
                    " is not quantized yet (or was damaged): run the recipe to its end first");
      }
      QuantizedBlock loaded = block_from_record(*record, decoder_);
      if (loaded.block != block) {
        throw Error("recipe " + recipe_.name + ": the record of block " + std::to_string(block) +
                    " holds block " + std::to_string(loaded.block));
      }
      for (const auto& [name, tensor] : loaded.replaced) {
        if (!model_.checkpoint().has(decoder_.prefix(block) + "." + name)) {
          throw Error("recipe " + recipe_.name + ": block " + std::to_string(block) + " replaces " +
                      name + ", which the original does not have");
        }
      }
      block_ = std::move(loaded);
    }
    return *block_;
  }

  const ExportedLinear& exported_linear(int block, std::size_t linear) const {
    return linears_[static_cast<std::size_t>(block) * decoder_.linears().size() + linear];
  }

  // What the recipe announces of such a linear. Throws Error if that is nothing, where the config will speak of it.
  LinearScheme announced(const LinearScheme& is, const LinearSpec& spec,
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
    std::vector<LinearScheme> may_be = recipe_.schemes;
    if (const LinearOverride* const own = find_override(recipe_.overrides, module);
        own != nullptr && own->scheme) {
      may_be = {*own->scheme};
    }
    const auto found = std::ranges::find_if(may_be, fits);
    if (found != may_be.end()) return *found;
    if (!format_.has_scheme() && !is.is_original()) return is;
    throw Error(
        fmt::format("{} is not what recipe {} makes of a linear: {} bits, {}{}{}", module,
                    recipe_.name, is.bits,
                    is.is_original() ? std::string("left as it was")
                    : is.kind == LinearScheme::Kind::kTable
                        ? std::string("lookup tables")
                        : fmt::format("grid {}, group size {}", name_of(is.grid), is.group_size),
                    is.reordered ? ", reordered" : "", is.sparse ? ", with a sparse part" : ""));
  }

  void write_linear(SafetensorsWriter& writer, const Piece& piece) {
    const QuantizedLinear& linear = load_block(piece.block).linears[piece.linear];
    const std::string& module = exported_linear(piece.block, piece.linear).module;
    announced(scheme_of(linear), decoder_.linears()[piece.linear], module);
    std::vector<HostTensor> filled;
    try {
      filled = format_.fill(linear, piece.type);
    } catch (const Error& error) {
      throw Error(decoder_.prefix(piece.block) + "." + error.what());
    }
    for (std::size_t i = 0; i < filled.size(); ++i) {
      require(
          filled[i].type() == piece.tensors[i].type && filled[i].shape() == piece.tensors[i].shape,
          "an export format keeps to the shapes that it announced");
      writer.write(piece.tensors[i].name, filled[i].bytes());
    }
  }

  // What a method changed, else what the checkpoint has.
  HostView kept(const Piece& piece) {
    if (piece.block >= 0) {
      const DenseTensors& replaced = load_block(piece.block).replaced;
      const auto found =
          replaced.find(piece.source.substr(decoder_.prefix(piece.block).size() + 1));
      if (found != replaced.end()) return found->second.view();
    }
    model_.checkpoint().note_content(piece.source);
    return model_.checkpoint().view(piece.source);
  }

  // In slices: an embedding may be larger than a block.
  void write_kept(SafetensorsWriter& writer, const Piece& piece) {
    constexpr std::size_t kSlice = std::size_t{4} << 20;  // elements
    const HostView view = kept(piece);
    const std::size_t from_size = size_of(view.type), to_size = size_of(piece.type);
    const auto count = static_cast<std::size_t>(element_count(view.shape));
    std::vector<std::byte> slice(std::min(count, kSlice) * to_size);
    for (std::size_t done = 0; done < count; done += kSlice) {
      const std::size_t n = std::min(kSlice, count - done);
      convert_finite(piece.source, view.type, view.bytes.data() + done * from_size, piece.type,
                     slice.data(), n);
      writer.write(piece.source, std::span(slice).first(n * to_size));
    }
  }

  const CausalLM& model_;
  const DecoderBlock& decoder_;
  const Recipe& recipe_;
  RunStore& store_;
  const ExportOptions& options_;
  const ExportFormat& format_;
  Monitor& monitor_;
  std::vector<ExportedLinear> linears_;  // block by block
  Json config_;                          // quantization_config
  std::vector<OutputFile> files_;
  std::int64_t total_bytes_ = 0;
  std::optional<QuantizedBlock> block_;
};

void check_dtype(const ExportOptions& options) {
  if (!options.dtype) return;
  constexpr std::array kTypes = {DType::kF16, DType::kBF16, DType::kF32};
  if (std::ranges::find(kTypes, *options.dtype) == kTypes.end()) {
    throw InputError("an export's dtype is float16, bfloat16 or float32, not " +
                     std::string(name_of(*options.dtype)));
  }
}

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
  for (const std::vector<std::byte>& bytes : lines_of_ranks) {
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (; !text.empty(); text.remove_prefix(text.find('\n') + 1)) {
      nlohmann::json line = nlohmann::json::parse(text.substr(0, text.find('\n')));
      const int block = line.at("at").get<int>();
      by_block[block] = std::move(line);
    }
  }
  nlohmann::json all = nlohmann::json::array();
  for (auto& [block, line] : by_block) all.push_back(std::move(line));
  return all.dump();
}

}  // namespace

std::vector<std::string> export_formats() { return format_names(); }

void check_exportable(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                      const std::string& format) {
  const std::unique_ptr<ExportFormat> layout = make_format(format);
  layout->check_schemes(recipe);
  if (recipe.overrides.empty()) {
    for (const LinearSpec& linear : decoder.linears()) layout->check_size(recipe, linear);
    return;
  }
  // Each linear by what becomes of it alone.
  const std::vector<LinearScheme> usual = own_schemes(recipe);
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    std::vector<std::vector<LinearScheme>> seen;
    for (int block = 0; block < blocks; ++block) {
      Recipe one = recipe;
      one.schemes = usual;
      if (is_overridden(recipe.overrides, decoder, block, i))
        one.schemes = {scheme_of(recipe.overrides, decoder, block, i, usual.front())};
      if (one.schemes.front().is_original() || std::ranges::find(seen, one.schemes) != seen.end())
        continue;
      layout->check_size(one, decoder.linears()[i]);
      seen.push_back(one.schemes);
    }
  }
}

void check_kept_values(const CausalLM& model, const ExportOptions& options) {
  check_dtype(options);
  if (options.dtype && *options.dtype != DType::kF32)
    check_unquantized_values(model.config(), model.checkpoint(), *options.dtype);
}

bool export_checkpoint(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
                       RunStore& store, const ExportOptions& options, const fs::path& directory,
                       Communicator& world, Monitor& monitor) {
  check_exportable(recipe, decoder, static_cast<int>(model.config().blocks), options.format);
  check_dtype(options);
  if (options.max_shard_bytes < 1) throw InputError("max_shard_bytes must be positive");
  const std::unique_ptr<ExportFormat> format = make_format(options.format);
  const fs::path target = output_path(directory);
  const fs::path partial = beside(target, ".partial");
  const int rank = world.rank(), size = world.size();
  Exporter exporter(model, decoder, recipe, store, options, *format, monitor);

  std::string schemes;  // a line for each block of this rank
  together(world, [&] {
    for (int block = rank; block < static_cast<int>(model.config().blocks); block += size) {
      const auto attributes = store.attributes(block_key(recipe.name, block));
      if (!attributes) {
        throw Error("recipe " + recipe.name + ": block " + std::to_string(block) +
                    " is not quantized yet");
      }
      schemes_from_attributes(*attributes, decoder);  // so that a fault is that of this block
      schemes += scheme_line(block, *attributes);
      monitor.tick();
    }
    if (rank == 0) check_replaceable(target, options.replace);
  });
  const std::string all_schemes =
      share(world, in_order(world.gather(std::as_bytes(std::span(schemes)), 0)));
  together(world, [&] { exporter.plan(nlohmann::json::parse(all_schemes)); });
  const auto remove_partial = [&partial] {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
  };
  const auto nothing = [] {};
  const auto on_rank_0 = [&](const std::function<void()>& work) {
    together(world, rank == 0 ? work : nothing, remove_partial);
  };
  on_rank_0([&] {
    pass_write_guard();
    fs::remove_all(partial);  // of a job that was killed
    fs::create_directories(partial);
  });

  std::string sums;  // of this rank's files
  bool stopped = false;
  const auto write_files = [&] {
    for (std::size_t i = static_cast<std::size_t>(rank); i < exporter.files().size(); i += size) {
      stopped = monitor.stop_requested();
      if (stopped) return;
      exporter.write_file(partial, exporter.files()[i]);
      sums += sum_line(partial, exporter.files()[i].name);
    }
  };
  together(world, write_files, remove_partial);
  if (world.all_reduce_max(stopped ? 1 : 0) == 1) {
    on_rank_0(remove_partial);
    return false;
  }
  const std::vector<std::vector<std::byte>> all_sums =
      world.gather(std::as_bytes(std::span(sums)), 0);

  on_rank_0([&] {
    std::vector<std::string> lines;
    for (const std::vector<std::byte>& bytes : all_sums) {
      std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      for (; !text.empty(); text.remove_prefix(text.find('\n') + 1)) {
        lines.emplace_back(text.substr(0, text.find('\n') + 1));
      }
    }
    for (const std::string& name : exporter.write_rest(partial)) {
      lines.push_back(sum_line(partial, name));
    }
    write_sums(partial, std::move(lines));
    move_into_place(partial, target);
  });
  return true;
}

}  // namespace roundhouse
