#pragma once

#include "kernels/operands.h"

namespace roundhouse {

// Calls work(column, value) for the entries of a row. Throws Error for one that the matrix does not have.
template <class Work>
void for_each_entry(const SparseRows& m, std::int64_t row, std::int64_t cols, const Work& work) {
  if (is_empty(m)) return;
  const auto* const starts = static_cast<const std::int32_t*>(m.starts.data);
  const auto* const columns = static_cast<const std::int32_t*>(m.columns.data);
  const float* const values = m.values.f32();
  require(0 <= starts[row] && starts[row] <= starts[row + 1] && starts[row + 1] <= m.columns.cols,
          "a row of a sparse matrix has entries that are not there");
  for (std::int32_t i = starts[row]; i < starts[row + 1]; ++i) {
    require(0 <= columns[i] && columns[i] < cols, "an entry of a sparse matrix lies outside");
    work(columns[i], values[i]);
  }
}

}  // namespace roundhouse
