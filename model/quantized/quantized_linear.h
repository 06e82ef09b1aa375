// The canonical quantized linear: exact, and what everything that exports or evaluates starts from.
//
//   W[n, k] = scale[n, g] * (code[n, k] - zero[n, g]),   g = group of column k
//
// Scales are already float16 and codes were chosen with them, so no later step rounds anything again.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/tensor.h"
#include "kernels/backend.h"
#include "kernels/grid.h"
#include "model/quantized/dense_tensors.h"
#include "model/quantized/linear_scheme.h"

namespace roundhouse {

struct QuantizedLinear {
  std::string name;  // within the block: "self_attn.q_proj"
  int bits = 0;
  Grid grid = Grid::kAsymGptq;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t group_size =
      0;              // columns a group, cols for "per channel"; the last group may be shorter
  HostTensor codes;   // U8 [rows, cols], each below 2^bits
  HostTensor scales;  // F16 [rows, groups]
  HostTensor zeros;   // U8 [rows, groups]
  HostTensor group_of_column;  // I32 [cols], or empty (count 0) for k / group_size
  nlohmann::json record;       // what happened: error, damping, fallbacks (methods say which keys)

  std::int64_t groups() const { return (cols + group_size - 1) / group_size; }
};

// What it has become. group_size: as it is, never -1.
LinearScheme scheme_of(const QuantizedLinear& linear);

// Throws Error naming the linear unless shapes, types and ranges are as above (used on everything read back).
void validate(const QuantizedLinear& linear);

// W in the backend's activation type.
Tensor dequantize(const QuantizedLinear& linear, Backend& backend);

// Bits stored for each weight: codes, scales and (on asymmetric grids) zero points, over all these linears.
double bits_per_weight(const std::vector<QuantizedLinear>& linears);

struct QuantizedBlock {
  int block = 0;
  std::vector<QuantizedLinear> linears;  // in the order of DecoderBlock::linears()
  nlohmann::json record;                 // of the whole block: samples dropped, ...
  DenseTensors replaced =
      {};  // norms and biases that are no longer the checkpoint's: AWQ folds scales into them
};

}  // namespace roundhouse
