// The exponent a of GateFunction, f(x) = x / (1 + exp(-a)), and its slope da/dx, which is 1 for SiLU.
#pragma once

#include "kernels/transformer.h"

namespace roundhouse {

__device__ inline float exponent_of(GateFunction function, float x) {
  if (function == GateFunction::kSilu) return x;
  return 1.5957691216057308f * (x + 0.044715f * (x * x * x));
}
__device__ inline float gelu_exponent_slope(float x) {
  return 1.5957691216057308f * (1.0f + 0.134145f * (x * x));
}

}  // namespace roundhouse
