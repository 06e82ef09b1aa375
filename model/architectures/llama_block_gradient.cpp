// The halves of LlamaBlock, and their backward passes.
#include <utility>

#include "model/architectures/llama_block.h"
#include "model/block/linear.h"

namespace roundhouse {

std::vector<Tensor> LlamaBlock::forward_half(Half half, const BlockWeights& weights,
                                             Tensor& residual, std::int64_t length,
                                             Backend& backend) const {
  const bool attention = half == Half::kAttention;
  std::vector<Tensor> inner;
  {
    const Tensor n = input_of(half, weights, residual, backend);
    inner = attention
                ? attention_.forward(weights, n, length, SelfAttention::For::kBackward, backend)
                : gate_and_up(weights, n, backend);
  }
  Tensor product;
  if (!attention) product = gated_product(parts_of(inner), backend);
  Tensor raw = add_output(half, weights, attention ? inner[SelfAttention::kOutput] : product, true,
                          residual, backend);
  if (config_.norms_of_outputs) inner.push_back(std::move(raw));
  return inner;
}

void LlamaBlock::backward_half(Half half, const BlockWeights& weights,
                               SavedActivations::OfHalf& saved, std::int64_t length,
                               Tensor& gradient, const TakeGradient& take,
                               InputGradient input_gradient, Backend& backend) const {
  if (half == Half::kAttention) {
    attention_backward(weights, saved, length, gradient, take, input_gradient, backend);
  } else {
    mlp_backward(weights, saved, length, gradient, take, backend);
  }
}

void LlamaBlock::mlp_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                              std::int64_t length, Tensor& gradient, const TakeGradient& take,
                              Backend& backend) const {
  const Tensor own = output_gradient(Half::kMlp, weights, saved, gradient, backend);
  const Tensor& dy = own.empty() ? gradient : own;
  std::vector<Tensor> outputs = std::move(saved.inner);
  const GateUp parts = parts_of(outputs);
  take(down_, {dy, gated_product(parts, backend), length});
  {
    const Tensor d_product = input_gradient_of(dy, weights.linears[down_], backend);
    backend.gated_product_backward({.gate = parts.gate,
                                    .up = parts.up,
                                    .dy = d_product.view(),
                                    .d_gate = parts.gate,
                                    .d_up = parts.up,
                                    .function = config_.gate});
  }
  const std::vector<Tensor> gradients = std::move(outputs);  // in place
  {
    const Tensor n = input_of(Half::kMlp, weights, saved.input, backend);
    for (int linear = up_; linear >= gate_; --linear) {
      take(linear, {gradients[linear - gate_], n, length});
    }
  }
  add_half_gradient(
      Half::kMlp, weights, saved.input,
      [&](Matrix to, bool accumulate) {
        for (int linear = gate_; linear <= up_; ++linear) {
          add_input_gradient(gradients[linear - gate_], weights.linears[linear], to,
                             accumulate || linear > gate_, backend);
        }
      },
      gradient, backend);
}

void LlamaBlock::attention_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                                    std::int64_t length, Tensor& gradient, const TakeGradient& take,
                                    InputGradient input_gradient, Backend& backend) const {
  const Tensor own = output_gradient(Half::kAttention, weights, saved, gradient, backend);
  const SelfAttention::Gradients gradients = attention_.backward(
      weights, std::move(saved.inner), own.empty() ? gradient : own, length, take, backend);
  attention_.take_gradients(gradients, input_of(Half::kAttention, weights, saved.input, backend),
                            length, take);
  if (input_gradient == InputGradient::kNo) return;
  add_half_gradient(
      Half::kAttention, weights, saved.input,
      [&](Matrix to, bool accumulate) {
        attention_.add_input_gradients(weights, gradients, to, accumulate, backend);
      },
      gradient, backend);
}

Tensor LlamaBlock::output_gradient(Half half, const BlockWeights& weights,
                                   SavedActivations::OfHalf& saved, const Tensor& gradient,
                                   Backend& backend) const {
  if (!config_.norms_of_outputs && config_.residual_multiplier == 1.0f) return {};
  Tensor dy(backend, gradient.type(), gradient.rows(), gradient.cols());
  backend.scaled_sum({.x = gradient.view(),
                      .scale = config_.residual_multiplier,
                      .y = dy.view(),
                      .accumulate = false});
  if (config_.norms_of_outputs) {
    const Tensor raw = std::move(saved.inner.back());
    saved.inner.pop_back();
    backend.rms_norm_backward({.x = raw.view(),
                               .weight = weights.norms[norms_of(half).output].view(),
                               .dy = std::as_const(dy).view(),
                               .dx = dy.view(),
                               .epsilon = config_.norm_epsilon,
                               .offset = config_.norm_offset});
  }
  return dy;
}

void LlamaBlock::add_half_gradient(Half half, const BlockWeights& weights, const Tensor& x,
                                   const AddInputGradients& add, Tensor& gradient,
                                   Backend& backend) const {
  if (!config_.norms_of_inputs) {
    add(gradient.view(), true);
    return;
  }
  Tensor dn(backend, backend.activation_type(), gradient.rows(), hidden_size_);
  add(dn.view(), false);
  backend.rms_norm_backward({.x = x.view(),
                             .weight = weights.norms[norms_of(half).input].view(),
                             .dy = std::as_const(dn).view(),
                             .dx = gradient.view(),
                             .epsilon = config_.norm_epsilon,
                             .accumulate = true,
                             .offset = config_.norm_offset});
}

}  // namespace roundhouse
