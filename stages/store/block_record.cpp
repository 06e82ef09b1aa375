// One record a block. For each linear, under its name:
//
//   NAME.codes            U32 [rows, packed_words(cols)], each row its own bit stream, unused high bits 0
//
// on a uniform grid
//
//   NAME.scales           F16 [rows, groups]
//   NAME.zeros            U8  [rows, groups]
//   NAME.group_of_column  I32 [cols], only where a column's group is not column / group_size
//
// in place of these, where it has lookup tables (attribute "grid": "table", and no "group_size")
//
//   NAME.table            F16 [rows, 2^bits]
//
// where it has a sparse part (attribute "sparse", the number of its entries)
//
//   NAME.sparse.offsets   I32 [rows + 1]
//   NAME.sparse.columns   I32 [entries]
//   NAME.sparse.values    F16 [entries]
//
// for each norm or bias that is no longer the checkpoint's
//
//   replaced.NAME         its values, in the checkpoint's type
//
// and as attributes everything else, so that a record can be read without knowing its recipe. Version 1 knew neither tables nor
// sparse parts; what it holds reads as version 2.
#include "stages/store/block_record.h"

#include <array>
#include <optional>

#include "base/error.h"
#include "model/quantized/bitstream.h"

namespace roundhouse {
namespace {

constexpr int kVersion = 2;
constexpr const char* kTable = "table";  // in place of a grid's name
constexpr const char* kReplaced = "replaced.";
constexpr std::array kGrids = {Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound,
                               Grid::kSymGptq, Grid::kSymFull};

std::optional<Grid> grid_from_name(const std::string& name) {
  for (const Grid grid : kGrids) {
    if (name_of(grid) == name) return grid;
  }
  return std::nullopt;
}

HostTensor pack_codes(const QuantizedLinear& linear) {
  const auto cols = static_cast<std::size_t>(linear.cols);
  const std::size_t words = packed_words(cols, linear.bits);
  HostTensor packed(DType::kU32, {linear.rows, static_cast<std::int64_t>(words)});
  const std::span<const std::uint8_t> codes = linear.codes.as<std::uint8_t>();
  const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
  for (std::size_t row = 0; row < static_cast<std::size_t>(linear.rows); ++row) {
    pack_bits(codes.data() + row * cols, cols, 1, linear.bits, out.data() + row * words);
  }
  return packed;
}

HostTensor unpack_codes(const HostTensor& packed, const QuantizedLinear& linear) {
  const auto cols = static_cast<std::size_t>(linear.cols);
  const std::size_t words = packed_words(cols, linear.bits);
  const std::size_t used_bits =
      cols * static_cast<std::size_t>(linear.bits) % 32;  // of the last word; 0: all
  HostTensor codes(DType::kU8, {linear.rows, linear.cols});
  const std::span<const std::uint32_t> in = packed.as<std::uint32_t>();
  const std::span<std::uint8_t> out = codes.as<std::uint8_t>();
  for (std::size_t row = 0; row < static_cast<std::size_t>(linear.rows); ++row) {
    const std::uint32_t* stream = in.data() + row * words;
    if (used_bits != 0 && stream[words - 1] >> used_bits != 0) {
      throw Error(linear.name + ": codes of row " + std::to_string(row) +
                  " run past the last column");
    }
    unpack_bits(stream, cols, linear.bits, out.data() + row * cols);
  }
  return codes;
}

class RecordReader {
 public:
  explicit RecordReader(const Record& record) : record_(record) {}

  const HostTensor& tensor(const std::string& name, DType type, const Shape& shape) {
    const auto found = record_.tensors.find(name);
    if (found == record_.tensors.end()) throw Error(name + " is missing");
    if (found->second.type() != type || found->second.shape() != shape) {
      throw Error(name + " has the wrong type or shape");
    }
    ++used_;
    return found->second;
  }
  bool has(const std::string& name) const { return record_.tensors.contains(name); }
  // Those whose name begins with `prefix`, named by the rest.
  DenseTensors all_of(const std::string& prefix) {
    DenseTensors found;
    for (const auto& [name, tensor] : record_.tensors) {
      if (!name.starts_with(prefix)) continue;
      found[name.substr(prefix.size())] = tensor;
      ++used_;
    }
    return found;
  }
  bool all_used() const { return used_ == record_.tensors.size(); }

 private:
  const Record& record_;
  std::size_t used_ = 0;
};

void read_grid(QuantizedLinear& linear, const std::string& name, const nlohmann::json& attributes,
               RecordReader& reader) {
  const std::optional<Grid> grid = grid_from_name(name);
  if (!grid) throw Error(linear.name + ": unknown grid '" + name + "'");
  linear.grid = *grid;
  linear.group_size = attributes.at("group_size").get<std::int64_t>();
  if (linear.group_size < 1 || linear.group_size > linear.cols) {
    throw Error(linear.name + ": group size " + std::to_string(linear.group_size));
  }
  const Shape by_group = {linear.rows, linear.groups()};
  linear.scales = reader.tensor(linear.name + ".scales", DType::kF16, by_group);
  linear.zeros = reader.tensor(linear.name + ".zeros", DType::kU8, by_group);
  if (reader.has(linear.name + ".group_of_column")) {
    linear.group_of_column =
        reader.tensor(linear.name + ".group_of_column", DType::kI32, {linear.cols});
  }
}

void read_table(QuantizedLinear& linear, RecordReader& reader) {
  linear.group_size = linear.cols;
  linear.table = reader.tensor(linear.name + ".table", DType::kF16,
                               {linear.rows, std::int64_t{1} << linear.bits});
}

SparsePart read_sparse(const QuantizedLinear& linear, std::int64_t entries, RecordReader& reader) {
  if (entries < 0 || entries > linear.rows * linear.cols) {
    throw Error(linear.name + ": a sparse part of " + std::to_string(entries) + " entries");
  }
  const std::string prefix = linear.name + ".sparse.";
  return {.offsets = reader.tensor(prefix + "offsets", DType::kI32, {linear.rows + 1}),
          .columns = reader.tensor(prefix + "columns", DType::kI32, {entries}),
          .values = reader.tensor(prefix + "values", DType::kF16, {entries})};
}

nlohmann::json write_linear(const QuantizedLinear& linear, Record& record) {
  validate(linear);
  const auto put = [&](const char* name, const HostTensor& tensor) {
    record.tensors[linear.name + "." + name] = tensor;
  };
  nlohmann::json attributes = {{"name", linear.name}, {"bits", linear.bits},
                               {"grid", kTable},      {"rows", linear.rows},
                               {"cols", linear.cols}, {"record", linear.record}};
  put("codes", pack_codes(linear));
  if (linear.has_table()) {
    put("table", linear.table);
  } else {
    attributes["grid"] = std::string(name_of(linear.grid));
    attributes["group_size"] = linear.group_size;
    put("scales", linear.scales);
    put("zeros", linear.zeros);
    if (linear.group_of_column.count() > 0) put("group_of_column", linear.group_of_column);
  }
  if (!linear.sparse.empty()) {
    attributes["sparse"] = linear.sparse.entries();
    put("sparse.offsets", linear.sparse.offsets);
    put("sparse.columns", linear.sparse.columns);
    put("sparse.values", linear.sparse.values);
  }
  return attributes;
}

QuantizedLinear read_linear(const nlohmann::json& attributes, const LinearSpec& spec,
                            RecordReader& reader) {
  QuantizedLinear linear;
  linear.name = attributes.at("name").get<std::string>();
  if (linear.name != spec.name)
    throw Error("'" + linear.name + "' where " + spec.name + " should be");
  linear.bits = attributes.at("bits").get<int>();
  if (linear.bits != 2 && linear.bits != 3 && linear.bits != 4 && linear.bits != 8) {
    throw Error(spec.name + ": " + std::to_string(linear.bits) + " bits");
  }
  linear.rows = attributes.at("rows").get<std::int64_t>();
  linear.cols = attributes.at("cols").get<std::int64_t>();
  if (linear.rows != spec.rows || linear.cols != spec.cols) {
    throw Error(spec.name + ": " + std::to_string(linear.rows) + " x " +
                std::to_string(linear.cols) + " where the model has " + std::to_string(spec.rows) +
                " x " + std::to_string(spec.cols));
  }
  linear.record = attributes.at("record");

  const auto words =
      static_cast<std::int64_t>(packed_words(static_cast<std::size_t>(linear.cols), linear.bits));
  linear.codes =
      unpack_codes(reader.tensor(spec.name + ".codes", DType::kU32, {linear.rows, words}), linear);
  const auto grid = attributes.at("grid").get<std::string>();
  if (grid == kTable) {
    read_table(linear, reader);
  } else {
    read_grid(linear, grid, attributes, reader);
  }
  if (attributes.contains("sparse")) {
    linear.sparse = read_sparse(linear, attributes.at("sparse").get<std::int64_t>(), reader);
  }
  validate(linear);
  return linear;
}

QuantizedBlock read_block(const Record& record, const DecoderBlock& shape) {
  const nlohmann::json& attributes = record.attributes;
  const int version = attributes.at("version").get<int>();
  if (version < 1 || version > kVersion)
    throw Error("written in version " + std::to_string(version) + " of the record");
  QuantizedBlock block;
  block.block = attributes.at("block").get<int>();
  if (block.block < 0) throw Error("block " + std::to_string(block.block));
  block.record = attributes.at("record");
  const nlohmann::json& linears = attributes.at("linears");
  if (!linears.is_array() || linears.size() != shape.linears().size()) {
    throw Error("has " + std::to_string(linears.size()) + " linears where the model has " +
                std::to_string(shape.linears().size()));
  }
  RecordReader reader(record);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    block.linears.push_back(read_linear(linears[i], shape.linears()[i], reader));
  }
  block.replaced = reader.all_of(kReplaced);
  validate(block.replaced, shape);
  if (!reader.all_used()) throw Error("has tensors that belong to no linear");
  return block;
}

}  // namespace

Record to_record(const QuantizedBlock& block) {
  Record record;
  nlohmann::json linears = nlohmann::json::array();
  for (const QuantizedLinear& linear : block.linears) {
    linears.push_back(write_linear(linear, record));
  }
  for (const auto& [name, tensor] : block.replaced) record.tensors[kReplaced + name] = tensor;
  record.attributes = {{"version", kVersion},
                       {"block", block.block},
                       {"linears", std::move(linears)},
                       {"record", block.record}};
  return record;
}

QuantizedBlock block_from_record(const Record& record, const DecoderBlock& shape) {
  try {
    return read_block(record, shape);
  } catch (const nlohmann::json::exception& error) {
    throw Error(std::string("block record: attributes: ") + error.what());
  } catch (const Error& error) {
    throw Error(std::string("block record: ") + error.what());
  }
}

}  // namespace roundhouse
