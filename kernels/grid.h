// The uniform quantization grids (reference: the tables of GPTQ's quant.py, llm-awq's quantizer.py, AutoRound's int.py).
//
// A group of weights shares a scale s and an integer zero point z:  code = clamp(rne(w / s) + z, 0, 2^bits - 1),
// value = s (code - z).  The rounding rule is the file format: it stands here once, for every device.
// Scales are rounded to float16, the type they are stored in, before any code is chosen.
//
//   id       range of the group                                  scale               zero
//   A-gptq   lo = min(0, min w), hi = max(0, max w)              (hi - lo) / qmax    rne(-lo / s)
//   A-awq    lo = min w, hi = max w                              (hi - lo) / qmax    rne(-lo / s), clamped
//   A-ar     as A-gptq, s >= 1e-5                                (hi - lo) / qmax    rne(-lo / s)
//   S-gptq   a = max |w|; lo = -a, hi = a                        2 a / qmax          2^(bits-1)
//   S-full   a = max |w|, sign + if -lo > hi else -              sign a / 2^(bits-1) 2^(bits-1)   (s may be negative)
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/host_device.h"

namespace roundhouse {

enum class Grid { kAsymGptq, kAsymAwq, kAsymAutoRound, kSymGptq, kSymFull };

std::string_view name_of(Grid grid);  // "A-gptq", ...
bool is_symmetric(Grid grid);

struct GridPoint {
  float scale;  // exactly a float16, finite, never 0
  int zero;     // in [0, 2^bits - 1]
};

// lo and hi are the smallest and the largest weight of the group (before 0 is forced inside, which the grid does).
GridPoint make_grid_point(Grid grid, int bits, float lo, float hi);  // host and device: see grid.cpp

ROUNDHOUSE_HD inline int code_of(float w, float scale, int zero, int qmax) {
  // Clamped as a float first: w / s may exceed the range of int.
  const float code = rintf(w / scale) + static_cast<float>(zero);
  return static_cast<int>(fminf(fmaxf(code, 0.0f), static_cast<float>(qmax)));
}
ROUNDHOUSE_HD inline float value_of(int code, float scale, int zero) {
  return scale * static_cast<float>(code - zero);
}

}  // namespace roundhouse
