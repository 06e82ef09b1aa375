// The backward pass of a linear y = x wᵀ (+ bias): dw = dyᵀ x and dx = dy w.
#pragma once

#include "kernels/backend.h"

namespace roundhouse {

// dyᵀ x in F32.
inline Tensor weight_gradient(const Tensor& dy, const Tensor& x, Backend& backend) {
  Tensor dw(backend, DType::kF32, dy.cols(), x.cols());
  backend.matmul({.a = dy.view(), .transpose_a = true, .b = x.view(), .c = dw.view()});
  return dw;
}

// dx (+)= dy w
inline void add_input_gradient(const Tensor& dy, const Tensor& w, Matrix dx, bool accumulate,
                               Backend& backend) {
  backend.matmul({.a = dy.view(), .b = w.view(), .c = dx, .beta = accumulate ? 1.0f : 0.0f});
}
inline Tensor input_gradient_of(const Tensor& dy, const Tensor& w, Backend& backend) {
  Tensor dx(backend, backend.activation_type(), dy.rows(), w.cols());
  add_input_gradient(dy, w, dx.view(), false, backend);
  return dx;
}

}  // namespace roundhouse
