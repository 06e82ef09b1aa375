#pragma once

#include <cuda_runtime.h>

#include "kernels/operands.h"

namespace roundhouse {

// The lanes of a warp call work(column, value) for the entries of a row. One that the matrix does not have ends the kernel,
// which is found when the host next waits.
template <class Work>
__device__ inline void for_each_entry(const SparseRows& m, std::int64_t row, std::int64_t cols,
                                      const Work& work) {
  if (m.columns.cols == 0) return;
  const auto* const starts = static_cast<const std::int32_t*>(m.starts.data);
  const int begin = starts[row], end = starts[row + 1];
  if (begin < 0 || end > m.columns.cols) __trap();
  for (int i = begin + static_cast<int>(threadIdx.x) % 32; i < end; i += 32) {
    const int column = static_cast<const std::int32_t*>(m.columns.data)[i];
    if (column < 0 || column >= cols) __trap();
    work(column, static_cast<const float*>(m.values.data)[i]);
  }
}

}  // namespace roundhouse
