// A tile of a linear's rows as codes into lookup tables, and what is kept beside them as a sparse matrix.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "base/tensor.h"
#include "kernels/backend.h"

namespace roundhouse {

struct TableOptions {
  int bits;
  bool exact = false;  // the optimum instead of the best of several starts
  std::uint64_t seed = 0;
  // What is kept beside: weights whose sensitivity is above, or whose magnitude is at least. Infinity: none.
  float sensitive_above = std::numeric_limits<float>::infinity();
  float large_from = std::numeric_limits<float>::infinity();
};

// In host memory, rows counted from the tile's first.
struct TableTile {
  HostTensor codes;                  // U8 [rows, cols]
  HostTensor tables;                 // F16 [rows, 2^bits], ascending
  std::vector<ClusteredRow> rows;    // errors are of the weights in the tables alone
  std::vector<std::int32_t> starts;  // the sparse part: see SparseRows
  std::vector<std::int32_t> columns;
  std::vector<float>
      values;  // w - table[code], so that the sum is w again (but for one rounding to F32)
};

// w and sensitivity (Fisher's diagonal), F32 [rows, cols] in the backend's memory, are left as they are. Weights that are kept
// beside count for nothing, and their codes are of the value nearest 0. Throws Error that names the row, of the tile, and the
// column of what cannot be clustered.
TableTile cluster_tile(const ConstMatrix& w, const ConstMatrix& sensitivity,
                       const TableOptions& options, Backend& backend);

}  // namespace roundhouse
