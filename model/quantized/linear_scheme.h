// How the weights of a linear are coded, whatever its size.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/grid.h"

namespace roundhouse {

struct LinearScheme {
  enum class Kind {
    kUniform,  // codes on uniform grids, one a group of columns
    kTable,    // codes that point into a table of 2^bits values, one a row
    kKept      // not coded: the weights are the checkpoint's, and nothing below says anything
  };
  Kind kind = Kind::kUniform;
  int bits = 4;  // of a code
  // Of uniform grids alone:
  std::int64_t group_size = 128;  // -1: the whole row
  Grid grid = Grid::kAsymGptq;
  bool reordered = false;  // a column's group is not column / group_size: GPTQ's dynamic act-order
  // Of both: a few weights stand apart, added to what the codes say.
  bool sparse = false;

  // Columns a group of a linear so wide.
  std::int64_t group_size_for(std::int64_t cols) const {
    return group_size == -1 ? cols : std::min(group_size, cols);
  }
  bool operator==(const LinearScheme&) const = default;

  bool is_original() const { return kind == Kind::kKept; }
  static LinearScheme original() { return {.kind = Kind::kKept, .bits = 16, .group_size = -1}; }
};

}  // namespace roundhouse
