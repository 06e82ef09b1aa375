// One kernel for all operations that treat the elements of a matrix, or packs of them, each by itself.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"

namespace roundhouse {

inline constexpr int kElementwiseColumns = 32;  // packs of a row that a block takes at a time
inline constexpr int kElementwiseRows = 8;

template <class Work>
__global__ void __launch_bounds__(kElementwiseColumns* kElementwiseRows)
    elementwise_kernel(std::int64_t rows, std::int64_t packs, int width, Work work) {
  const std::int64_t pack = static_cast<std::int64_t>(blockIdx.x) * kElementwiseColumns +
                            threadIdx.x % kElementwiseColumns;
  if (pack >= packs) return;
  for (std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * kElementwiseRows +
                          threadIdx.x / kElementwiseColumns;
       row < rows; row += static_cast<std::int64_t>(gridDim.y) * kElementwiseRows) {
    work(row, pack * width);
  }
}

// Calls work(row, col) on the device for each row and each width-th column. Precondition: cols is a multiple of width.
template <class Work>
void for_each_element(std::int64_t rows, std::int64_t cols, int width, cudaStream_t stream,
                      const Work& work) {
  constexpr std::int64_t kMostRowBlocks = 65535;  // of a grid's y dimension
  const std::int64_t packs = cols / width;
  launch(elementwise_kernel<Work>,
         {.grid = dim3(blocks_for(packs, kElementwiseColumns),
                       std::min<unsigned>(blocks_for(rows, kElementwiseRows), kMostRowBlocks)),
          .threads = kElementwiseColumns * kElementwiseRows,
          .stream = stream},
         rows, packs, width, work);
}

}  // namespace roundhouse
