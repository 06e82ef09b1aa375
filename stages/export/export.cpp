#include "stages/export/export.h"

#include <algorithm>
#include <array>
#include <functional>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/quote.h"
#include "base/write_guard.h"
#include "comm/together.h"
#include "model/architectures/tensor_names.h"
#include "model/block/model_units.h"
#include "stages/export/compare.h"
#include "stages/export/container.h"
#include "stages/export/output_folder.h"
#include "stages/export/sha256sums.h"
#include "stages/export/side_files.h"
#include "stages/quantize/methods.h"
#include "stages/store/block_record.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// What is never cut in two: one linear, or one tensor that stays as it is.
struct Piece {
  std::vector<TensorInfo> tensors;
  std::string source;                   // tensor of the original checkpoint; empty for a linear
  DType type = DType::kF32;             // in which dense values leave
  int block = -1;                       // where it is; -1: outside the blocks
  std::size_t linear = 0;               // index into DecoderBlock::linears()
  std::optional<HostTensor> made = {};  // the container's own: its values

  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const TensorInfo& tensor : tensors) {
      sum += element_count(tensor.shape) * static_cast<std::int64_t>(size_of(tensor.type));
    }
    return sum;
  }
};

// Everything an export needs to know; does the work of one rank.
class Exporter {
 public:
  Exporter(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
           RunStore& store, const ExportOptions& options, const ExportFormat& format,
           Monitor& monitor)
      : model_(model),
        decoder_(decoder),
        units_(decoder, static_cast<int>(model.config().blocks), recipe.include),
        outer_(outer_layout(model.config())),
        recipe_(recipe),
        store_(store),
        options_(options),
        format_(format),
        monitor_(monitor) {}

  // Decides what goes where, from sizes and schemes alone: the same on every rank and for any number of them. `attributes` are those
  // of the records of all blocks. Throws InputError if the format cannot hold them.
  void plan(const nlohmann::json& attributes) {
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
    container_ = format_.container({.model = model_,
                                    .recipe = recipe_,
                                    .format = format_,
                                    .linears = linears_,
                                    .untied = unties()});
    cut(list_pieces());
  }

  std::size_t files() const { return files_.size(); }
  const std::string& file_name(std::size_t file) const { return files_[file].name; }

  void write_file(const fs::path& directory, std::size_t file) {
    monitor_.phase("exporting " + recipe_.name + " as " + format_.name() + ": " + file_name(file));
    write_atomically(directory / file_name(file), [&](const fs::path& temp) {
      const std::unique_ptr<TensorWriter> writer = container_->create(temp, files_, file);
      for (const Piece& piece : pieces_[file]) {
        if (piece.source.empty()) {
          write_linear(*writer, piece);
        } else {
          write_kept(*writer, piece);
        }
        monitor_.tick();
      }
      writer->close();
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
    for (const Container::Text& text : container_->texts(files_, declared_type()))
      write(text.name, text.text);
    const SideFiles beside = side_files(source);
    for (const std::string& name : beside.carried) write(name, read_text_file(source / name));
    if (!beside.left.empty()) {
      std::string left;
      for (const std::string& path : beside.left) left += (left.empty() ? "" : ", ") + path;
      monitor_.say("not carried along from " + source.string() + ": " + left);
    }
    return written;
  }

  // What a file of weights holds that is not what the run has: a line each, with the tensor, a few at most. Reads it through the
  // format, not through what wrote it.
  std::vector<std::string> check_file(const fs::path& directory, std::size_t file) {
    monitor_.phase("checking " + recipe_.name + " as " + format_.name() + ": " + file_name(file));
    std::vector<std::string> faults;
    std::unique_ptr<TensorFile> stored;
    try {
      stored = container_->open(directory / file_name(file), files_, file);
    } catch (const Error& error) {
      return {within(directory, error.what())};
    }
    std::set<std::string> unknown;
    for (std::string& name : stored->names()) unknown.insert(std::move(name));
    for (const Piece& piece : pieces_[file]) {
      for (const TensorInfo& tensor : piece.tensors) unknown.erase(tensor.name);
      std::string fault;
      try {
        const std::vector<HostView> views = views_of(*stored, piece);
        fault = piece.source.empty() ? compare_linear(piece, views) : compare_kept(piece, views);
      } catch (const Error& error) {
        fault = within(directory, error.what());
      }
      if (!fault.empty()) faults.push_back(std::move(fault));
      stored->release_pages();
      monitor_.tick();
    }
    for (const std::string& name : unknown)
      faults.push_back(file_name(file) + ": tensor " + in_quotes(name) + ": not of this model");
    for (std::string& fault : faults) {
      if (!fault.starts_with(file_name(file))) fault = file_name(file) + ": " + fault;
    }
    return faults;
  }

  // The same of what says how the weights are to be read.
  std::vector<std::string> check_rest(const fs::path& directory) const {
    std::vector<std::string> faults;
    for (const Container::Text& text : container_->texts(files_, declared_type())) {
      try {
        const Container::Text there = {text.name, read_text_file(directory / text.name)};
        if (container_->essence(there) != container_->essence(text))
          faults.push_back(text.name + ": does not describe what the run made");
      } catch (const Error& error) {
        faults.push_back(within(directory, error.what()));
      }
    }
    return faults;
  }

 private:
  // What config.json says of all: the type in which readers hold the model.
  DType declared_type() const {
    if (options_.dtype) return *options_.dtype;
    std::set<DType> types;
    for (const std::vector<Piece>& pieces : pieces_) {
      for (const Piece& piece : pieces) {
        if (!piece.source.empty()) types.insert(piece.type);
      }
    }
    return types.size() == 1 ? *types.begin() : model_.config().dtype;
  }

  DType type_of(const std::string& source) const {
    return options_.dtype.value_or(model_.checkpoint().view(source).type);
  }

  // Under its own name, or another.
  void add_kept(std::vector<Piece>& pieces, const std::string& name, int block = -1,
                const std::string& as = "") const {
    const HostView view = model_.checkpoint().view(name);
    if (view.type != DType::kF32 && view.type != DType::kF16 && view.type != DType::kBF16) {
      throw InputError(model_.checkpoint().directory().string() + ": " + name + " is " +
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
  std::optional<std::size_t> quantized_outside(bool head) const {
    const DecoderBlock* const outer = units_.outer();
    for (std::size_t i = 0; outer != nullptr && i < outer->linears().size(); ++i) {
      const bool is_head = outer->linears()[i].name == kOuterLinears.back();
      if (is_head == head && !exported_linear(units_.blocks(), i).scheme.is_original()) return i;
    }
    return std::nullopt;
  }
  bool unties() const {
    return outer_.head == outer_.embedding && (quantized_outside(true) || quantized_outside(false));
  }

  // `source`: the tensor of the checkpoint.
  void add_linear(std::vector<Piece>& pieces, const std::string& source, int block,
                  std::size_t linear) const {
    Piece piece;
    piece.block = block;
    piece.linear = linear;
    piece.type = type_of(source);
    const ExportedLinear& exported = exported_linear(block, linear);
    for (TensorInfo& tensor : format_.tensors(exported, piece.type))
      piece.tensors.push_back(container_->of_linear(exported, std::move(tensor)));
    pieces.push_back(std::move(piece));
  }

  std::vector<Piece> list_pieces() const {
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
  void cut(std::vector<Piece> pieces) {
    std::int64_t in_file = 0;
    for (Piece& piece : pieces) {
      const std::int64_t bytes = piece.bytes();
      if (files_.empty() || in_file + bytes > options_.max_shard_bytes) {
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

  std::string unit_called(int block) const {
    return unit_name(block, units_.blocks(), recipe_.include);
  }

  // Keeps the last block: pieces come block by block.
  const QuantizedBlock& load_block(int block) {
    if (!block_ || block_->block != block) {
      block_.reset();
      const std::optional<Record> record = store_.load(block_key(recipe_.name, block));
      if (!record) {
        throw Error(
            fmt::format("recipe {}: {} is not quantized yet (or was damaged): run the recipe "
                        "to its end first",
                        recipe_.name, unit_called(block)));
      }
      QuantizedBlock loaded = block_from_record(*record, units_.of(block));
      if (loaded.block != block) {
        throw Error(fmt::format("recipe {}: the record of {} holds {}", recipe_.name,
                                unit_called(block), unit_called(loaded.block)));
      }
      for (const auto& [name, tensor] : loaded.replaced) {
        if (!model_.checkpoint().has(decoder_.prefix(block) + "." + name)) {
          throw Error(fmt::format("recipe {}: {} replaces {}, which the original does not have",
                                  recipe_.name, unit_called(block), name));
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

  const QuantizedLinear& load_linear(const Piece& piece) {
    const QuantizedLinear& linear = load_block(piece.block).linears[piece.linear];
    const ExportedLinear& exported = exported_linear(piece.block, piece.linear);
    announced(scheme_of(linear), exported.spec, exported.module);
    return linear;
  }

  void write_linear(TensorWriter& writer, const Piece& piece) {
    const QuantizedLinear& linear = load_linear(piece);
    std::vector<HostTensor> filled;
    try {
      filled = format_.fill(linear, piece.type);
    } catch (const Error& error) {
      const bool in_block = piece.block < units_.blocks();
      throw Error((in_block ? decoder_.prefix(piece.block) + "." : "") + error.what());
    }
    const std::vector<std::int64_t> order =
        container_->row_order(exported_linear(piece.block, piece.linear));
    for (std::size_t i = 0; i < filled.size(); ++i) {
      require(
          filled[i].type() == piece.tensors[i].type && filled[i].shape() == piece.tensors[i].shape,
          "an export format keeps to the shapes that it announced");
      if (order.empty()) {
        writer.write(piece.tensors[i].name, filled[i].bytes());
        continue;
      }
      const std::size_t row_bytes = filled[i].bytes().size() / order.size();
      for (const std::int64_t row : order) {
        writer.write(
            piece.tensors[i].name,
            filled[i].bytes().subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes));
      }
    }
  }

  // Throws Error naming a tensor that is not there, or not in its type and shape.
  static std::vector<HostView> views_of(const TensorFile& file, const Piece& piece) {
    std::vector<HostView> views;
    for (const TensorInfo& tensor : piece.tensors) {
      views.push_back(file.view(tensor.name));
      if (views.back().type != tensor.type || views.back().shape != tensor.shape)
        throw Error("tensor " + in_quotes(tensor.name) + ": has another type or shape");
    }
    return views;
  }

  // Of the first weight that differs; empty: none does.
  std::string compare_linear(const Piece& piece, const std::vector<HostView>& stored) {
    const QuantizedLinear& linear = load_linear(piece);
    const ExportedLinear& exported = exported_linear(piece.block, piece.linear);
    const std::vector<std::int64_t> order = container_->row_order(exported);
    const auto cols = static_cast<std::size_t>(linear.cols);
    DequantizedRows rows(linear);
    constexpr std::int64_t kTogether =
        16;  // rows whose words lie side by side in transposed layouts
    std::vector<float> there, expected(cols);
    std::int64_t wrong = 0;
    std::string first;
    for (std::int64_t begin = 0; begin < linear.rows; begin += kTogether) {
      const auto n = static_cast<std::size_t>(std::min(kTogether, linear.rows - begin));
      there.resize(n * cols);
      try {
        format_.read(exported, stored, begin, there);
      } catch (const Error& error) {
        throw Error("tensor of " + exported.module + ": " + error.what());
      }
      for (std::size_t i = 0; i < n; ++i) {
        const std::int64_t at = begin + static_cast<std::int64_t>(i);
        const std::int64_t row = order.empty() ? at : order[at];
        std::ranges::copy(rows.values(row), expected.begin());
        format_.round_row(linear, row, piece.type, expected);
        for (std::size_t col = 0; col < cols; ++col) {
          const float is = there[i * cols + col];
          if (is == expected[col]) continue;
          if (wrong++ == 0) {
            first = fmt::format("the weight of row {}, column {} is {} in place of {}", row, col,
                                is, expected[col]);
          }
        }
      }
    }
    if (wrong == 0) return "";
    const std::string what = piece.tensors.size() == 1 ? "tensor " + piece.tensors.front().name
                                                       : "tensors of " + exported.module;
    return fmt::format("{}: {} ({} of its {} weights differ)", what, first, wrong,
                       linear.rows * linear.cols);
  }

  std::string compare_kept(const Piece& piece, const std::vector<HostView>& stored) {
    std::size_t done = 0;
    std::optional<std::size_t> wrong;  // the first byte that differs
    each_slice(piece, [&](std::span<const std::byte> slice) {
      const auto there = stored.front().bytes.subspan(done, slice.size());
      const auto [a, b] = std::ranges::mismatch(there, slice);
      if (!wrong && a != there.end()) wrong = done + static_cast<std::size_t>(a - there.begin());
      done += slice.size();
    });
    if (!wrong) return "";
    return fmt::format("tensor {}: differs from the model's {} at element {}",
                       piece.tensors.front().name, piece.source, *wrong / size_of(piece.type));
  }

  // Faults name files within the directory.
  static std::string within(const fs::path& directory, std::string fault) {
    const std::string prefix = directory.string() + "/";
    for (std::size_t at; (at = fault.find(prefix)) != std::string::npos;)
      fault.erase(at, prefix.size());
    return fault;
  }

  // What a method changed, else what the checkpoint has.
  HostView kept(const Piece& piece) {
    if (piece.made) return piece.made->view();
    if (piece.block >= 0) {
      const DenseTensors& replaced = load_block(piece.block).replaced;
      const auto found =
          replaced.find(piece.source.substr(decoder_.prefix(piece.block).size() + 1));
      if (found != replaced.end()) return found->second.view();
    }
    model_.checkpoint().note_content(piece.source);
    return model_.checkpoint().view(piece.source);
  }

  // Its bytes as they leave, in slices: an embedding may be larger than a block.
  void each_slice(const Piece& piece, const std::function<void(std::span<const std::byte>)>& use) {
    constexpr std::size_t kSlice = std::size_t{4} << 20;  // elements
    const HostView view = kept(piece);
    const std::size_t from_size = size_of(view.type), to_size = size_of(piece.type);
    const auto count = static_cast<std::size_t>(element_count(view.shape));
    std::vector<std::byte> slice(std::min(count, kSlice) * to_size);
    for (std::size_t done = 0; done < count; done += kSlice) {
      const std::size_t n = std::min(kSlice, count - done);
      convert_finite(piece.source, view.type, view.bytes.data() + done * from_size, piece.type,
                     slice.data(), n);
      use(std::span(slice).first(n * to_size));
    }
  }

  void write_kept(TensorWriter& writer, const Piece& piece) {
    each_slice(piece, [&](std::span<const std::byte> slice) {
      writer.write(piece.tensors.front().name, slice);
    });
  }

  const CausalLM& model_;
  const DecoderBlock& decoder_;
  const ModelUnits units_;
  const OuterLayout outer_;
  const Recipe& recipe_;
  RunStore& store_;
  const ExportOptions& options_;
  const ExportFormat& format_;
  Monitor& monitor_;
  std::vector<ExportedLinear> linears_;  // unit by unit
  std::unique_ptr<Container> container_;
  std::vector<ExportedFile> files_;
  std::vector<std::vector<Piece>> pieces_;  // by file
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

// Collective. `before`: what else may fail on one rank first.
void plan(Exporter& exporter, const CausalLM& model, const DecoderBlock& decoder,
          const Recipe& recipe, RunStore& store, Communicator& world, Monitor& monitor,
          const std::function<void()>& before) {
  std::string schemes;  // a line for each block of this rank
  const ModelUnits units(decoder, static_cast<int>(model.config().blocks), recipe.include);
  together(world, [&] {
    for (int block = world.rank(); block < units.count(); block += world.size()) {
      const auto attributes = store.attributes(block_key(recipe.name, block));
      if (!attributes) {
        throw Error(fmt::format("recipe {}: {} is not quantized yet", recipe.name,
                                unit_name(block, units.blocks(), recipe.include)));
      }
      schemes_from_attributes(*attributes,
                              units.of(block));  // so that a fault is that of this block
      schemes += scheme_line(block, *attributes);
      monitor.tick();
    }
    before();
  });
  const std::string all_schemes =
      share(world, in_order(world.gather(std::as_bytes(std::span(schemes)), 0)));
  together(world, [&] { exporter.plan(nlohmann::json::parse(all_schemes)); });
}

// Lines that were gathered from all ranks, each with its '\n'.
std::vector<std::string> lines_of(const std::vector<std::vector<std::byte>>& ranks) {
  std::vector<std::string> lines;
  for (const std::vector<std::byte>& bytes : ranks) {
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (; !text.empty(); text.remove_prefix(text.find('\n') + 1))
      lines.emplace_back(text.substr(0, text.find('\n') + 1));
  }
  return lines;
}

}  // namespace

namespace {

// Of the linears of units of one kind.
void check_sizes(const ExportFormat& layout, const Recipe& recipe, const DecoderBlock& decoder,
                 int begin, int end) {
  if (recipe.overrides.empty()) {
    for (const LinearSpec& linear : decoder.linears()) layout.check_size(recipe, linear);
    return;
  }
  // Each linear by what becomes of it alone.
  const std::vector<LinearScheme> usual = own_schemes(recipe);
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    std::vector<std::vector<LinearScheme>> seen;
    for (int block = begin; block < end; ++block) {
      Recipe one = recipe;
      one.schemes = usual;
      if (is_overridden(recipe.overrides, decoder, block, i))
        one.schemes = {scheme_of(recipe.overrides, decoder, block, i, usual.front())};
      if (one.schemes.front().is_original() || std::ranges::find(seen, one.schemes) != seen.end())
        continue;
      layout.check_size(one, decoder.linears()[i]);
      seen.push_back(one.schemes);
    }
  }
}

}  // namespace

std::vector<std::string> export_formats() { return format_names(); }

void check_exportable(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                      const std::string& format) {
  const std::unique_ptr<ExportFormat> layout = make_format(format);
  layout->check_schemes(recipe);
  for (const std::string& linear : recipe.include) {
    if (const std::string why = layout->cannot_hold(linear); !why.empty())
      throw not_exportable(format, recipe, why, "include");
  }
  check_sizes(*layout, recipe, decoder, 0, blocks);
  const ModelUnits units(decoder, blocks, recipe.include);
  if (units.outer() != nullptr) check_sizes(*layout, recipe, *units.outer(), blocks, blocks + 1);
}

void check_model_exportable(const CausalLM& model, const Recipe& recipe,
                            const std::string& format) {
  make_format(format)->check_model(model, recipe);
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

  plan(exporter, model, decoder, recipe, store, world, monitor, [&] {
    if (rank == 0) check_replaceable(target, options.replace);
  });
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
    for (std::size_t i = static_cast<std::size_t>(rank); i < exporter.files(); i += size) {
      stopped = monitor.stop_requested();
      if (stopped) return;
      exporter.write_file(partial, i);
      sums += sum_line(partial, exporter.file_name(i));
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
    std::vector<std::string> lines = lines_of(all_sums);
    for (const std::string& name : exporter.write_rest(partial)) {
      lines.push_back(sum_line(partial, name));
    }
    write_sums(partial, std::move(lines));
    move_into_place(partial, target);
  });
  return true;
}

std::optional<std::vector<std::string>> compare_export(const CausalLM& model,
                                                       const DecoderBlock& decoder,
                                                       const Recipe& recipe, RunStore& store,
                                                       const ExportOptions& options,
                                                       const fs::path& directory,
                                                       Communicator& world, Monitor& monitor) {
  check_exportable(recipe, decoder, static_cast<int>(model.config().blocks), options.format);
  const std::unique_ptr<ExportFormat> format = make_format(options.format);
  const fs::path target = output_path(directory);
  Exporter exporter(model, decoder, recipe, store, options, *format, monitor);
  plan(exporter, model, decoder, recipe, store, world, monitor, [] {});
  std::string faults;
  bool stopped = false;
  together(world, [&] {
    const auto add = [&](std::vector<std::string> more) {
      for (const std::string& fault : more) faults += printable_line(fault) + "\n";
    };
    if (world.rank() == 0) add(exporter.check_rest(target));
    for (auto i = static_cast<std::size_t>(world.rank()); i < exporter.files();
         i += static_cast<std::size_t>(world.size())) {
      stopped = monitor.stop_requested();
      if (stopped) return;
      add(exporter.check_file(target, i));
    }
  });
  if (world.all_reduce_max(stopped ? 1 : 0) == 1) return std::nullopt;
  std::vector<std::string> all = lines_of(world.gather(std::as_bytes(std::span(faults)), 0));
  for (std::string& line : all) line.pop_back();
  return all;
}

}  // namespace roundhouse
