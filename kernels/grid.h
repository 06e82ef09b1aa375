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
//
// S-gptq keeps lo = -a for a group without negative weights too, where quant.py leaves lo = 0 and wastes half the codes.
// Floors: A-awq hi - lo >= 1e-5; A-ar and S-full |s| >= 1e-5; a group of zeros has lo, hi = -1, 1 in A-gptq and s = 1e-5
// in S-gptq; a scale that float16 would round to 0 is its smallest subnormal, 2^-24.
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
// Throws Error if they are not finite or the scale exceeds float16's range. Device code: see grid_point.h.
GridPoint make_grid_point(Grid grid, int bits, float lo, float hi);

// The code of w / s, to which learned rounding adds its offset.
ROUNDHOUSE_HD inline int code_at(float quotient, int zero, int qmax) {
  // Clamped as a float first: w / s may exceed the range of int. Comparisons, since they become vector code; NaN gives 0.
  const float code = rintf(quotient) + static_cast<float>(zero);
  const float top = static_cast<float>(qmax);
  const float above = code > 0.0f ? code : 0.0f;
  return static_cast<int>(above < top ? above : top);
}
ROUNDHOUSE_HD inline int code_of(float w, float scale, int zero, int qmax) {
  return code_at(w / scale, zero, qmax);
}
ROUNDHOUSE_HD inline float value_of(int code, float scale, int zero) {
  return scale * static_cast<float>(code - zero);
}

}  // namespace roundhouse
