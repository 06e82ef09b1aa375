// The halves of LlamaBlock, and their backward passes.
#include <utility>

#include "model/architectures/llama_block.h"
#include "model/block/linear.h"

namespace roundhouse {

std::vector<Tensor> LlamaBlock::forward_half(Half half, const BlockWeights& weights,
                                             Tensor& residual, std::int64_t length,
                                             Backend& backend) const {
  if (half == Half::kAttention) {
    const Tensor n = normalize(kBeforeAttention, weights, residual, backend);
    std::vector<Tensor> inner =
        attention_.forward(weights, n, length, SelfAttention::LogSumExp::kYes, backend);
    apply_linear(weights, kO, inner[SelfAttention::kOutput], residual.view(), true, backend);
    return inner;
  }
  std::vector<Tensor> inner;
  {
    const Tensor n = normalize(kBeforeMlp, weights, residual, backend);
    inner.push_back(apply_linear(weights, kGate, n, backend));
    inner.push_back(apply_linear(weights, kUp, n, backend));
  }
  const Tensor product = gated_product(inner[kGateOutput], inner[kUpOutput], backend);
  apply_linear(weights, kDown, product, residual.view(), true, backend);
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
  Tensor gate = std::move(saved.inner[kGateOutput]), up = std::move(saved.inner[kUpOutput]);
  take(kDown, {gradient, gated_product(gate, up, backend), length});
  {
    const Tensor d_product = input_gradient_of(gradient, weights.linears[kDown], backend);
    backend.silu_gate_backward({.gate = std::as_const(gate).view(),
                                .up = std::as_const(up).view(),
                                .dy = d_product.view(),
                                .d_gate = gate.view(),
                                .d_up = up.view()});
  }
  const Tensor d_gate = std::move(gate), d_up = std::move(up);
  {
    const Tensor n = normalize(kBeforeMlp, weights, saved.input, backend);
    take(kUp, {d_up, n, length});
    take(kGate, {d_gate, n, length});
  }
  Tensor dn = input_gradient_of(d_gate, weights.linears[kGate], backend);
  add_input_gradient(d_up, weights.linears[kUp], dn.view(), true, backend);
  add_norm_gradient(kBeforeMlp, weights, saved.input, dn, gradient, backend);
}

void LlamaBlock::attention_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                                    std::int64_t length, Tensor& gradient, const TakeGradient& take,
                                    InputGradient input_gradient, Backend& backend) const {
  const SelfAttention::Gradients gradients =
      attention_.backward(weights, std::move(saved.inner), gradient, length, take, backend);
  attention_.take_gradients(gradients, normalize(kBeforeAttention, weights, saved.input, backend),
                            length, take);
  if (input_gradient == InputGradient::kNo) return;
  Tensor dn(backend, backend.activation_type(), gradient.rows(), hidden_size_);
  attention_.add_input_gradients(weights, gradients, dn.view(), false, backend);
  add_norm_gradient(kBeforeAttention, weights, saved.input, dn, gradient, backend);
}

Tensor LlamaBlock::gated_product(const Tensor& gate, const Tensor& up, Backend& backend) {
  Tensor product(backend, gate.type(), gate.rows(), gate.cols());
  backend.silu_gate({.gate = gate.view(), .up = up.view(), .y = product.view()});
  return product;
}

void LlamaBlock::add_norm_gradient(NormIndex norm, const BlockWeights& weights, const Tensor& x,
                                   const Tensor& dy, Tensor& gradient, Backend& backend) const {
  backend.rms_norm_backward({.x = x.view(),
                             .weight = weights.norms[norm].view(),
                             .dy = dy.view(),
                             .dx = gradient.view(),
                             .epsilon = config_.norm_epsilon,
                             .accumulate = true});
}

}  // namespace roundhouse
