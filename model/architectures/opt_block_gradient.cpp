// The halves of OptBlock, and their backward passes.
#include <utility>

#include "model/architectures/opt_block.h"
#include "model/block/linear.h"

namespace roundhouse {

std::vector<Tensor> OptBlock::forward_half(Half half, const BlockWeights& weights, Tensor& residual,
                                           std::int64_t length, Backend& backend) const {
  const bool attention = half == Half::kAttention;
  const Norm norm = attention ? kAttentionNorm : kFinalNorm;
  std::vector<Tensor> inner;
  {
    const Tensor n = input_of(norm, weights, residual, backend);
    if (attention) {
      inner = attention_.forward(weights, n, length, SelfAttention::For::kBackward, backend);
    } else {
      inner.push_back(fc1_and_relu(weights, n, backend));
    }
  }
  apply_linear(weights, attention ? kOutProjection : kFc2,
               inner[attention ? std::size_t{SelfAttention::kOutput} : 0], residual.view(), true,
               backend);
  if (!config_.norm_first) {
    Tensor& sum = inner.emplace_back(std::move(residual));
    residual = Tensor(backend, sum.type(), sum.rows(), sum.cols());
    normalize(norm, weights, sum, residual.view(), backend);
  }
  return inner;
}

void OptBlock::backward_half(Half half, const BlockWeights& weights,
                             SavedActivations::OfHalf& saved, std::int64_t length, Tensor& gradient,
                             const TakeGradient& take, InputGradient input_gradient,
                             Backend& backend) const {
  const Norm norm = half == Half::kAttention ? kAttentionNorm : kFinalNorm;
  if (!config_.norm_first) {
    const Tensor sum = std::move(saved.inner.back());
    saved.inner.pop_back();
    norm_backward(norm, weights, sum, gradient, gradient, false, backend);
  }
  const bool wanted = input_gradient == InputGradient::kYes;
  // With norms last the input of the linears is the residual, whose gradient is already there.
  Tensor dn;
  if (wanted && config_.norm_first) {
    dn = Tensor(backend, gradient.type(), gradient.rows(), hidden_size_);
    backend.zero(dn.view());
  }
  const Matrix into = !wanted ? Matrix() : config_.norm_first ? dn.view() : gradient.view();
  if (half == Half::kAttention) {
    attention_backward(weights, saved, length, gradient, take, into, backend);
  } else {
    mlp_backward(weights, saved, length, gradient, take, into, backend);
  }
  if (wanted && config_.norm_first) {
    norm_backward(norm, weights, saved.input, dn, gradient, true, backend);
  }
}

void OptBlock::mlp_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                            std::int64_t length, const Tensor& dy, const TakeGradient& take,
                            Matrix dn, Backend& backend) const {
  const Tensor inner = std::move(saved.inner[0]);
  take(kFc2, {dy, inner, length});
  Tensor d_inner = input_gradient_of(dy, weights.linears[kFc2], backend);
  backend.relu_backward(
      {.y = inner.view(), .dy = std::as_const(d_inner).view(), .dx = d_inner.view()});
  take(kFc1, {d_inner, input_of(kFinalNorm, weights, saved.input, backend), length});
  if (dn.data) add_input_gradient(d_inner, weights.linears[kFc1], dn, true, backend);
}

void OptBlock::attention_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                                  std::int64_t length, const Tensor& dy, const TakeGradient& take,
                                  Matrix dn, Backend& backend) const {
  const SelfAttention::Gradients gradients =
      attention_.backward(weights, std::move(saved.inner), dy, length, take, backend);
  attention_.take_gradients(gradients, input_of(kAttentionNorm, weights, saved.input, backend),
                            length, take);
  if (dn.data) attention_.add_input_gradients(weights, gradients, dn, true, backend);
}

void OptBlock::norm_backward(Norm norm, const BlockWeights& weights, const Tensor& x,
                             const Tensor& dy, Tensor& gradient, bool accumulate,
                             Backend& backend) const {
  backend.layer_norm_backward({.x = x.view(),
                               .weight = weights.norms[norm == kAttentionNorm ? 0 : 2].view(),
                               .dy = dy.view(),
                               .dx = gradient.view(),
                               .epsilon = config_.norm_epsilon,
                               .accumulate = accumulate});
}

}  // namespace roundhouse
