// The largest value of a row, and where it stands.
#pragma once

#include <cstdint>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/float_key.h"

namespace roundhouse {

// The key of a value (float_key.h), then its column from the last one: larger for the larger value, and of equal values for the
// first, in whatever order threads bring theirs.
using Ranked = unsigned long long;
__device__ inline Ranked ranked(float value, int col) {
  return static_cast<Ranked>(key_of(value)) << 32 | ~static_cast<unsigned>(col);
}
__device__ inline float value_of(Ranked ranked) {
  return value_of_key(static_cast<std::uint32_t>(ranked >> 32));
}
__device__ inline int column_of(Ranked ranked) {
  return static_cast<int>(~static_cast<unsigned>(ranked));
}

// By all threads of a block: the first of the largest values of a row that is not empty. NaN is never the largest.
template <class T, int kWidth, int kThreads>
__device__ Ranked largest_of_row(const ConstMatrix& m, std::int64_t row, Ranked* parts) {
  float largest = -INFINITY;
  int column = static_cast<int>(threadIdx.x) * kWidth;
  for (int col = column; col < m.cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(m, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (x.at[i] > largest) {
        largest = x.at[i];
        column = col + i;
      }
    }
  }
  return block_reduce<kThreads>(ranked(largest, column), parts, Larger());
}

}  // namespace roundhouse
