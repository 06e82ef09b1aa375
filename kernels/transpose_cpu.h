#pragma once

#include <cstdint>

namespace roundhouse {

// to[j, i] = from[i, j] for i < rows, j < cols: in squares of 4 x 4, which any x86-64 turns in
// registers.
inline void transpose(const float* from, std::int64_t from_stride, std::int64_t rows,
                      std::int64_t cols, float* to, std::int64_t to_stride) {
  using Four [[gnu::vector_size(16), gnu::aligned(4), gnu::may_alias]] = float;
  using Index [[gnu::vector_size(16)]] = std::int32_t;
  constexpr Index kLowPairs{0, 4, 1, 5}, kHighPairs{2, 6, 3, 7};
  constexpr Index kLowHalves{0, 1, 4, 5}, kHighHalves{2, 3, 6, 7};
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
      const Four ab_low = __builtin_shuffle(a, b, kLowPairs);
      const Four ab_high = __builtin_shuffle(a, b, kHighPairs);
      const Four cd_low = __builtin_shuffle(c, d, kLowPairs);
      const Four cd_high = __builtin_shuffle(c, d, kHighPairs);
      *reinterpret_cast<Four*>(target) = __builtin_shuffle(ab_low, cd_low, kLowHalves);
      *reinterpret_cast<Four*>(target + to_stride) = __builtin_shuffle(ab_low, cd_low, kHighHalves);
      *reinterpret_cast<Four*>(target + 2 * to_stride) =
          __builtin_shuffle(ab_high, cd_high, kLowHalves);
      *reinterpret_cast<Four*>(target + 3 * to_stride) =
          __builtin_shuffle(ab_high, cd_high, kHighHalves);
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

}  // namespace roundhouse
