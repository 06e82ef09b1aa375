// The kernels behind CudaBackend::attention() and attention_backward(): one for tensor cores, one for all else.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/gradients.h"
#include "kernels/transformer.h"

namespace roundhouse {

// On tensor cores, for BF16 with heads of a multiple of 8 and rows that begin at multiples of 16 bytes; false for others.
bool attention_on_tensor_cores(const Attention& op, CudaDevice& device);

// For F32 or BF16 and any head of up to 256: a warp a query, in F32.
void attention_by_warps(const Attention& op, CudaDevice& device);

// The cap of scores q kᵀ that are not scaled yet: c / scale tanh(scale q kᵀ / c). A parameter of its own, which takes no registers.
struct UnscaledCap {
  float inner = 0.0f;  // scale / c; 0: no cap
  float outer = 0.0f;  // c / scale

  static constexpr float kTwoLog2E = 2.8853900817779268f;

  UnscaledCap(float scale, float cap) {
    if (cap > 0.0f) {
      inner = scale / cap;
      outer = cap / scale;
    }
  }
  // With an error of some 2^-23 of 1: no branch, and few registers.
  __device__ float tanh_of(float score) const {
    return 1.0f - __fdividef(2.0f, 1.0f + exp2f(kTwoLog2E * (score * inner)));
  }
};

// What the backward pass needs of a query's row of scores: their logarithmic sum, and the sum of d_out * out.
struct RowSums {
  float log_sum_exp;
  float d;
};
// [sequence][head][position]
using RowSumsTable = const RowSums*;

// The same choice.
bool attention_backward_on_tensor_cores(const AttentionBackward& op, RowSumsTable sums,
                                        CudaDevice& device);

}  // namespace roundhouse
