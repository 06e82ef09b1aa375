// What the CPU's kernels of weight quantization share about a group of weights.
#pragma once

#include <cstdint>

namespace roundhouse {

// sum a_i b_i: float32 in 16 lanes inside a chunk, double over lanes and chunks.
double dot_product(const float* a, const float* b, std::int64_t n);

}  // namespace roundhouse
