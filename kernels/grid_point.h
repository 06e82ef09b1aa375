// The arithmetic behind make_grid_point(), for host and device code alike. It does not throw:
// callers look at is_usable() where they can report an error.
#pragma once

#include <cstring>

#include "kernels/grid.h"

namespace roundhouse {

// The nearest float16 (ties to even) of a finite value, as a float; 65520 and more give 65536 and
// more, which no float16 has.
ROUNDHOUSE_HD inline float nearest_half(float value) {
  if (fabsf(value) < 0x1p-14f)
    return rintf(value * 0x1p24f) * 0x1p-24f;  // subnormal: steps of 2^-24
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits += 0x0fffu + ((bits >> 13) & 1u);  // 13 of the 23 bits of the mantissa go
  bits &= ~0x1fffu;
  memcpy(&value, &bits, sizeof(bits));
  return value;
}

ROUNDHOUSE_HD inline bool is_usable(float scale) {
  return fabsf(scale) <= 65504.0f && scale != 0.0f;  // false for NaN
}

// Precondition: lo <= hi. The scale may come out larger than a float16 can be, or NaN: see
// is_usable().
ROUNDHOUSE_HD inline GridPoint grid_point_of(Grid grid, int bits, float lo, float hi) {
  const int qmax = (1 << bits) - 1;
  const float levels = static_cast<float>(qmax);
  const int middle = 1 << (bits - 1);
  const float smallest = nearest_half(1e-5f);

  if (grid == Grid::kSymGptq) {
    const float a = fmaxf(fabsf(lo), fabsf(hi));
    if (a == 0.0f) return {smallest, middle};
    return {fmaxf(nearest_half(2.0f * a / levels), 0x1p-24f), middle};
  }
  if (grid == Grid::kSymFull) {
    const float a = fmaxf(fabsf(lo), fabsf(hi));
    const float size = fmaxf(nearest_half(a / static_cast<float>(middle)), smallest);
    return {-lo > hi ? size : -size, middle};
  }

  float scale = 0.0f;
  if (grid == Grid::kAsymAwq) {
    scale = fmaxf(nearest_half(fmaxf(hi - lo, 1e-5f) / levels), 0x1p-24f);
  } else {
    lo = fminf(lo, 0.0f);
    hi = fmaxf(hi, 0.0f);
    if (grid == Grid::kAsymGptq && lo == hi) {
      lo = -1.0f;
      hi = 1.0f;
    }
    scale = nearest_half((hi - lo) / levels);
    scale = fmaxf(scale, grid == Grid::kAsymAutoRound ? smallest : 0x1p-24f);
  }
  const float zero = fminf(fmaxf(rintf(-lo / scale), 0.0f), levels);
  return {scale, static_cast<int>(zero)};
}

}  // namespace roundhouse
