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
// and nothing at all for a linear that is the checkpoint's (attribute "grid": "original", and no "bits")
//
// for each norm or bias that is no longer the checkpoint's
//
//   replaced.NAME         its values, in the checkpoint's type
//
// and as attributes everything else, so that a record can be read without knowing its recipe. Version 1 knew neither tables nor
// sparse parts, version 2 no original linears; what they hold reads as version 3, and a block is written in 2 where it can be.
#include "stages/store/block_record.h"

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "kernels/host_threads.h"
#include "model/quantized/bitstream.h"
#include "model/quantized/validation.h"

namespace roundhouse {
namespace {

constexpr int kVersion = 3, kVersionWithoutOriginals = 2;
constexpr const char* kTable = "table";  // in place of a grid's name
constexpr const char* kOriginal = "original";
constexpr const char* kReplaced = "replaced.";
constexpr std::array kGrids = {Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound,
                               Grid::kSymGptq, Grid::kSymFull};

std::optional<Grid> grid_from_name(const std::string& name) {
  for (const Grid grid : kGrids) {
    if (name_of(grid) == name) return grid;
  }
  return std::nullopt;
}

// Calls work(row) for all rows, by all threads of the host.
void for_each_row(const QuantizedLinear& linear, const std::function<void(std::size_t row)>& work) {
  constexpr std::int64_t kCodes = 1 << 18;  // at a time
  const std::int64_t band = std::max<std::int64_t>(1, kCodes / linear.cols);
  on_host_threads((linear.rows + band - 1) / band, [&](std::int64_t piece) {
    const std::int64_t end = std::min(linear.rows, (piece + 1) * band);
    for (std::int64_t row = piece * band; row < end; ++row) work(static_cast<std::size_t>(row));
  });
}

HostTensor pack_codes(const QuantizedLinear& linear) {
  const auto cols = static_cast<std::size_t>(linear.cols);
  const std::size_t words = packed_words(cols, linear.bits);
  HostTensor packed(DType::kU32, {linear.rows, static_cast<std::int64_t>(words)});
  const std::span<const std::uint8_t> codes = linear.codes.as<std::uint8_t>();
  const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
  for_each_row(linear, [&](std::size_t row) {
    if (!try_pack_bits(codes.data() + row * cols, cols, linear.bits, out.data() + row * words))
      throw_code_out_of_range(linear);
  });
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
  for_each_row(linear, [&](std::size_t row) {
    const std::uint32_t* stream = in.data() + row * words;
    if (used_bits != 0 && stream[words - 1] >> used_bits != 0) {
      throw Error(fmt::format("{}: codes of row {} run past the last column", linear.name, row));
    }
    unpack_bits(stream, cols, linear.bits, out.data() + row * cols);
  });
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

// What the attributes say of a linear; rows and columns are those of the model.
RecordedScheme read_scheme(const nlohmann::json& attributes, const LinearSpec& spec) {
  const auto name = attributes.at("name").get<std::string>();
  if (name != spec.name) throw Error("'" + name + "' where " + spec.name + " should be");
  const auto fault = [&](const std::string& what) { return Error(spec.name + ": " + what); };
  const auto rows = attributes.at("rows").get<std::int64_t>();
  const auto cols = attributes.at("cols").get<std::int64_t>();
  if (rows != spec.rows || cols != spec.cols) {
    throw fault(
        fmt::format("{} x {} where the model has {} x {}", rows, cols, spec.rows, spec.cols));
  }
  RecordedScheme recorded;
  LinearScheme& scheme = recorded.scheme;
  const auto grid_name = attributes.at("grid").get<std::string>();
  if (grid_name == kOriginal) {
    scheme = LinearScheme::original();
    return recorded;
  }
  scheme.bits = attributes.at("bits").get<int>();
  if (scheme.bits < 2 || scheme.bits > 8) throw fault(fmt::format("{} bits", scheme.bits));
  if (grid_name == kTable) {
    scheme.kind = LinearScheme::Kind::kTable;
    scheme.group_size = cols;
  } else {
    const std::optional<Grid> grid = grid_from_name(grid_name);
    if (!grid) throw fault("unknown grid '" + grid_name + "'");
    scheme.grid = *grid;
    scheme.group_size = attributes.at("group_size").get<std::int64_t>();
    if (scheme.group_size < 1 || scheme.group_size > cols) {
      throw fault(fmt::format("group size {}", scheme.group_size));
    }
  }
  scheme.sparse = attributes.contains("sparse");
  if (scheme.sparse) {
    recorded.sparse_entries = attributes.at("sparse").get<std::int64_t>();
    if (recorded.sparse_entries < 0 || recorded.sparse_entries > rows * cols) {
      throw fault(fmt::format("a sparse part of {} entries", recorded.sparse_entries));
    }
  }
  return recorded;
}

nlohmann::json write_linear(const QuantizedLinear& linear, Record& record) {
  validate_beside_codes(linear);
  if (linear.original) {
    return {{"name", linear.name},
            {"grid", kOriginal},
            {"rows", linear.rows},
            {"cols", linear.cols},
            {"record", linear.record}};
  }
  const auto put = [&](const char* name, HostTensor tensor) {
    record.tensors[linear.name + "." + name] = std::move(tensor);
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
  const auto& [scheme, entries] = read_scheme(attributes, spec);
  if (scheme.is_original()) {
    QuantizedLinear kept = QuantizedLinear::kept(spec.name, spec.rows, spec.cols);
    kept.record = attributes.at("record");
    return kept;
  }
  QuantizedLinear linear;
  linear.name = spec.name;
  linear.bits = scheme.bits;
  linear.rows = spec.rows;
  linear.cols = spec.cols;
  linear.grid = scheme.grid;
  linear.group_size = scheme.group_size;
  linear.record = attributes.at("record");
  const auto part = [&](const char* name, DType type, const Shape& shape) -> const HostTensor& {
    return reader.tensor(spec.name + "." + name, type, shape);
  };
  const auto words =
      static_cast<std::int64_t>(packed_words(static_cast<std::size_t>(linear.cols), linear.bits));
  linear.codes = unpack_codes(part("codes", DType::kU32, {linear.rows, words}), linear);
  if (scheme.kind == LinearScheme::Kind::kTable) {
    linear.table = part("table", DType::kF16, {linear.rows, std::int64_t{1} << linear.bits});
  } else {
    linear.scales = part("scales", DType::kF16, {linear.rows, linear.groups()});
    linear.zeros = part("zeros", DType::kU8, {linear.rows, linear.groups()});
    if (reader.has(spec.name + ".group_of_column")) {
      linear.group_of_column = part("group_of_column", DType::kI32, {linear.cols});
    }
  }
  if (scheme.sparse) {
    linear.sparse = {.offsets = part("sparse.offsets", DType::kI32, {linear.rows + 1}),
                     .columns = part("sparse.columns", DType::kI32, {entries}),
                     .values = part("sparse.values", DType::kF16, {entries})};
  }
  validate_beside_codes(linear);
  return linear;
}

// Those of the linears, after what all versions have in common.
const nlohmann::json& attributes_of_linears(const nlohmann::json& attributes,
                                            const DecoderBlock& decoder) {
  const int version = attributes.at("version").get<int>();
  if (version < 1 || version > kVersion)
    throw Error(fmt::format("written in version {} of the record", version));
  const nlohmann::json& linears = attributes.at("linears");
  if (!linears.is_array() || linears.size() != decoder.linears().size()) {
    throw Error(fmt::format("has {} linears where the model has {}", linears.size(),
                            decoder.linears().size()));
  }
  return linears;
}

QuantizedBlock read_block(const Record& record, const DecoderBlock& decoder) {
  const nlohmann::json& attributes = record.attributes;
  const nlohmann::json& linears = attributes_of_linears(attributes, decoder);
  QuantizedBlock block;
  block.block = attributes.at("block").get<int>();
  if (block.block < 0) throw Error(fmt::format("block {}", block.block));
  block.record = attributes.at("record");
  RecordReader reader(record);
  for (std::size_t i = 0; i < linears.size(); ++i) {
    block.linears.push_back(read_linear(linears[i], decoder.linears()[i], reader));
  }
  block.replaced = reader.all_of(kReplaced);
  validate(block.replaced, decoder);
  if (!reader.all_used()) throw Error("has tensors that belong to no linear");
  return block;
}

// Whatever is wrong with a record is an Error that says so.
void as_error_of_record(const std::function<void()>& read) {
  try {
    read();
  } catch (const nlohmann::json::exception& error) {
    throw Error(std::string("block record: attributes: ") + error.what());
  } catch (const Error& error) {
    throw Error(std::string("block record: ") + error.what());
  }
}

}  // namespace

Record to_record(const QuantizedBlock& block) {
  Record record;
  nlohmann::json linears = nlohmann::json::array();
  for (const QuantizedLinear& linear : block.linears) {
    linears.push_back(write_linear(linear, record));
  }
  for (const auto& [name, tensor] : block.replaced) record.tensors[kReplaced + name] = tensor;
  const bool originals = std::ranges::any_of(block.linears, &QuantizedLinear::original);
  record.attributes = {{"version", originals ? kVersion : kVersionWithoutOriginals},
                       {"block", block.block},
                       {"linears", std::move(linears)},
                       {"record", block.record}};
  return record;
}

QuantizedBlock block_from_record(const Record& record, const DecoderBlock& decoder) {
  QuantizedBlock block;
  as_error_of_record([&] { block = read_block(record, decoder); });
  return block;
}

std::vector<RecordedScheme> schemes_from_attributes(const nlohmann::json& attributes,
                                                    const DecoderBlock& decoder) {
  std::vector<RecordedScheme> schemes;
  as_error_of_record([&] {
    const nlohmann::json& linears = attributes_of_linears(attributes, decoder);
    for (std::size_t i = 0; i < linears.size(); ++i)
      schemes.push_back(read_scheme(linears[i], decoder.linears()[i]));
  });
  return schemes;
}

}  // namespace roundhouse
