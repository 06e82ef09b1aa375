// Data for benchmarks: a GPU that multiplies zeros draws less power and runs at a higher clock than at work.
#pragma once

#include "kernels/backend.h"

namespace roundhouse {

// About normal with this standard deviation. `type`: a float type.
Tensor random_tensor(Backend& backend, DType type, std::int64_t rows, std::int64_t cols,
                     double scale = 1.0);

// y = x wᵀ of n x n matrices of this type: the best of five, in FLOP/s.
double matmul_rate(Backend& backend, DType type, std::int64_t n);

}  // namespace roundhouse
