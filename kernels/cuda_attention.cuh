// The two kernels behind CudaBackend::attention().
#pragma once

#include "kernels/cuda_device.cuh"
#include "kernels/transformer.h"

namespace roundhouse {

// On tensor cores, for BF16 with heads of 64, 128 or 256 and rows that begin at multiples of 16 bytes; false for others.
bool attention_on_tensor_cores(const Attention& op, CudaDevice& device);

// For F32 or BF16 and any head of up to 256: a warp a query, in F32.
void attention_by_warps(const Attention& op, CudaDevice& device);

}  // namespace roundhouse
