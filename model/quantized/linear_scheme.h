// How a linear is quantized, without its values: what the shapes of its tensors follow from.
#pragma once

#include <cstdint>

#include "kernels/grid.h"

namespace roundhouse {

struct LinearScheme {
  enum class Kind { kUniform, kTable };
  Kind kind = Kind::kUniform;
  int bits = 4;
  std::int64_t group_size = -1;  // -1: the whole row, as every table
  Grid grid = Grid::kAsymGptq;   // of kUniform
  bool reordered = false;        // a column's group is not column / group_size
  bool sparse = false;           // with a sparse part

  bool operator==(const LinearScheme&) const = default;
};

}  // namespace roundhouse
