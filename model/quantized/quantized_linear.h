// The canonical quantized linear: exact, and what everything that exports or evaluates starts from. Its dense part is
//
//   D[n, k] = scale[n, g] * (code[n, k] - zero[n, g]),   g = group of column k     on a uniform grid, or
//   D[n, k] = table[n, code[n, k]]                                                 by a lookup table of each row,
//
// and W = D + S where there is a sparse part S, else D. Scales and tables are already float16 and codes were chosen with them, so
// no later step rounds anything again, but for that one sum, which is rounded to float32.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/tensor.h"
#include "kernels/backend.h"
#include "kernels/grid.h"
#include "model/quantized/dense_tensors.h"
#include "model/quantized/linear_scheme.h"
#include "model/quantized/sparse_part.h"

namespace roundhouse {

struct QuantizedLinear {
  std::string name;  // within the block: "self_attn.q_proj"
  int bits = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool original =
      false;         // not quantized: W is the checkpoint's, and nothing but `record` below is used
  HostTensor codes;  // U8 [rows, cols], each below 2^bits

  // Of a uniform grid.
  Grid grid = Grid::kAsymGptq;
  std::int64_t group_size =
      0;  // columns a group, cols for "per channel" and for a table; the last group may be shorter
  HostTensor scales;           // F16 [rows, groups]
  HostTensor zeros;            // U8 [rows, groups]
  HostTensor group_of_column;  // I32 [cols], or empty (count 0) for k / group_size

  HostTensor table;  // F16 [rows, 2^bits] for 2, 3 or 4 bits, in place of the grid; empty: a grid
  SparsePart sparse;
  nlohmann::json record;  // what happened: error, damping, fallbacks (methods say which keys)

  static QuantizedLinear kept(const std::string& name, std::int64_t rows, std::int64_t cols);
  bool has_table() const { return table.count() > 0; }
  std::int64_t groups() const { return (cols + group_size - 1) / group_size; }
};

// Throws Error naming the linear unless shapes, types and ranges are as above (used on everything read back).
void validate(const QuantizedLinear& linear);

// What it has become. group_size: in columns, never -1 (but for an original one).
LinearScheme scheme_of(const QuantizedLinear& linear);

// W in the backend's activation type. Precondition, as for DequantizedRows: it is not an original.
Tensor dequantize(const QuantizedLinear& linear, Backend& backend);
// Rows of W in float32, one after the other, on the host: values(row) is row `row`, good until the next call.
class DequantizedRows {
 public:
  explicit DequantizedRows(const QuantizedLinear& linear);
  std::span<const float> values(std::int64_t row);

 private:
  const QuantizedLinear& linear_;
  std::vector<std::size_t> group_of_;  // by column
  std::vector<float> levels_;          // the row's table, or the scales of its groups
  std::vector<float> values_;
};

// Bits stored for each weight, over all these linears.
struct BitsPerWeight {
  double dense =
      0;  // codes, scales and (on asymmetric grids) zero points, or tables; 16 a weight of an original
  double sparse = 0;  // values, columns and offsets of sparse parts
};
BitsPerWeight bits_per_weight(const std::vector<QuantizedLinear>& linears);

struct QuantizedBlock {
  int block = 0;
  std::vector<QuantizedLinear> linears;  // in the order of DecoderBlock::linears()
  nlohmann::json record;                 // of the whole block: samples dropped, ...
  DenseTensors replaced =
      {};  // norms and biases that are no longer the checkpoint's: AWQ folds scales into them
};

}  // namespace roundhouse
