// Stands in for CUDA's header of this name: see ../README.md.
#pragma once

#include "base/dtype.h"

struct __half {
  std::uint16_t bits;
};
inline float __half2float(__half value) { return roundhouse::half_to_float(value.bits); }
inline __half __float2half_rn(float value) { return {roundhouse::float_to_half(value)}; }
