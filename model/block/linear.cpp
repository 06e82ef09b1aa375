#include "model/block/linear.h"

namespace roundhouse {

void apply_linear(const BlockWeights& weights, int linear, const Tensor& x, Matrix y,
                  bool accumulate, Backend& backend) {
  const auto index = static_cast<std::size_t>(linear);
  const Tensor& bias = weights.biases[index];
  backend.linear({.x = x.view(),
                  .w = weights.linears[index].view(),
                  .bias = bias.empty() ? ConstMatrix() : bias.view(),
                  .y = y,
                  .accumulate = accumulate});
}

Tensor apply_linear(const BlockWeights& weights, int linear, const Tensor& x, Backend& backend) {
  Tensor y(backend, backend.activation_type(), x.rows(), weights.linears[linear].rows());
  apply_linear(weights, linear, x, y.view(), false, backend);
  return y;
}

void weight_gradient(ConstMatrix dy, ConstMatrix x, Matrix dw, Backend& backend) {
  backend.matmul({.a = dy, .transpose_a = true, .b = x, .c = dw, .of_activations = true});
}

Tensor weight_gradient(ConstMatrix dy, ConstMatrix x, Backend& backend) {
  Tensor dw(backend, DType::kF32, dy.cols, x.cols);
  weight_gradient(dy, x, dw.view(), backend);
  return dw;
}

void add_input_gradient(const Tensor& dy, const Tensor& w, Matrix dx, bool accumulate,
                        Backend& backend) {
  backend.matmul({.a = dy.view(),
                  .b = w.view(),
                  .c = dx,
                  .beta = accumulate ? 1.0f : 0.0f,
                  .of_activations = true});
}

Tensor input_gradient_of(const Tensor& dy, const Tensor& w, Backend& backend) {
  Tensor dx(backend, backend.activation_type(), dy.rows(), w.cols());
  add_input_gradient(dy, w, dx.view(), false, backend);
  return dx;
}

}  // namespace roundhouse
