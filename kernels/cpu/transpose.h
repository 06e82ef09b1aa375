#pragma once

#include <cstdint>

namespace roundhouse {

// to[j, i] = from[i, j] for i < rows, j < cols: in squares of 4 x 4, which any x86-64 turns in
// registers.
inline void transpose(const float* from, std::int64_t from_stride, std::int64_t rows,
                      std::int64_t cols, float* to, std::int64_t to_stride) {
  using Four [[gnu::vector_size(16), gnu::aligned(4), gnu::may_alias]] = float;
  const std::int64_t whole_rows = rows / 4 * 4;
  const std::int64_t whole_cols = cols / 4 * 4;
  for (std::int64_t i = 0; i < whole_rows; i += 4) {
    for (std::int64_t j = 0; j < whole_cols; j += 4) {
      const float* const source = from + i * from_stride + j;
      float* const target = to + j * to_stride + i;
      const Four a = *reinterpret_cast<const Four*>(source);
      const Four b = *reinterpret_cast<const Four*>(source + from_stride);
      const Four c = *reinterpret_cast<const Four*>(source + 2 * from_stride);
      const Four d = *reinterpret_cast<const Four*>(source + 3 * from_stride);
      const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
      const Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
      const Four cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      *reinterpret_cast<Four*>(target) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(target + to_stride) =
          __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
      *reinterpret_cast<Four*>(target + 2 * to_stride) =
          __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
      *reinterpret_cast<Four*>(target + 3 * to_stride) =
          __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

}  // namespace roundhouse
