// The backward pass of LlamaBlock.
#include <utility>

#include "model/linear_gradient.h"
#include "model/llama_block.h"

namespace roundhouse {
void LlamaBlock::forward_saving_all(const BlockWeights& weights, BlockState& state,
                                    SavedActivations& saved, Backend& backend) const {
  check_sequences(state.residual, state.sequences, state.length);
  saved.inner.resize(kSavedCount);
  auto& inner = saved.inner;
  {
    const Tensor n = normalize(kBeforeAttention, weights, state.residual, backend);
    inner[kSavedQ] = project(kQ, weights, n, backend);
    inner[kSavedK] = project(kK, weights, n, backend);
    inner[kSavedV] = project(kV, weights, n, backend);
  }
  rotate(inner[kSavedQ], config_.heads, state.length, backend);
  rotate(inner[kSavedK], config_.kv_heads, state.length, backend);
  inner[kSavedAttention] = attend(inner[kSavedQ], inner[kSavedK], inner[kSavedV], state.length,
                                  &inner[kSavedLogSumExp], backend);
  project(kO, weights, inner[kSavedAttention], state.residual.view(), backend, true);

  inner[kSavedMiddle] = Tensor(backend, state.residual.type(), state.residual.rows(), hidden_size_);
  backend.copy(std::as_const(state.residual).view(), inner[kSavedMiddle].view());
  {
    const Tensor n = normalize(kBeforeMlp, weights, state.residual, backend);
    inner[kSavedGate] = project(kGate, weights, n, backend);
    inner[kSavedUp] = project(kUp, weights, n, backend);
  }
  Tensor gated(backend, backend.activation_type(), state.residual.rows(),
               config_.intermediate_size);
  backend.silu_gate({.gate = std::as_const(inner[kSavedGate]).view(),
                     .up = std::as_const(inner[kSavedUp]).view(),
                     .y = gated.view()});
  project(kDown, weights, gated, state.residual.view(), backend, true);
}

Tensor LlamaBlock::backward_from_all(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                                     const TakeGradient& take, InputGradient input_gradient,
                                     Backend& backend) const {
  mlp_backward(weights, saved, dy, take, backend);
  attention_backward(weights, saved, dy, take, input_gradient, backend);
  return input_gradient == InputGradient::kYes ? std::move(dy) : Tensor();
}

void LlamaBlock::mlp_backward(const BlockWeights& weights, SavedActivations& saved,
                              Tensor& gradient, const TakeGradient& take, Backend& backend) const {
  Tensor gate = std::exchange(saved.inner[kSavedGate], {});
  Tensor up = std::exchange(saved.inner[kSavedUp], {});
  {
    Tensor gated(backend, gate.type(), gate.rows(), gate.cols());
    backend.silu_gate(
        {.gate = std::as_const(gate).view(), .up = std::as_const(up).view(), .y = gated.view()});
    take(kDown, weight_gradient(gradient, gated, backend));
  }
  {
    const Tensor d_gated = input_gradient_of(gradient, weights.linears[kDown], backend);
    backend.silu_gate_backward({.gate = std::as_const(gate).view(),
                                .up = std::as_const(up).view(),
                                .dy = d_gated.view(),
                                .d_gate = gate.view(),
                                .d_up = up.view()});
  }
  const Tensor d_gate = std::move(gate), d_up = std::move(up);
  const Tensor middle = std::exchange(saved.inner[kSavedMiddle], {});
  {
    const Tensor n = normalize(kBeforeMlp, weights, middle, backend);
    take(kUp, weight_gradient(d_up, n, backend));
    take(kGate, weight_gradient(d_gate, n, backend));
  }
  Tensor dn = input_gradient_of(d_gate, weights.linears[kGate], backend);
  add_input_gradient(d_up, weights.linears[kUp], dn.view(), true, backend);
  backend.rms_norm_backward({.x = middle.view(),
                             .weight = weights.norms[kBeforeMlp].view(),
                             .dy = std::as_const(dn).view(),
                             .dx = gradient.view(),
                             .epsilon = config_.norm_epsilon,
                             .accumulate = true});
}

void LlamaBlock::attention_backward(const BlockWeights& weights, SavedActivations& saved,
                                    Tensor& gradient, const TakeGradient& take,
                                    InputGradient input_gradient, Backend& backend) const {
  const Tensor q = std::exchange(saved.inner[kSavedQ], {});
  const Tensor k = std::exchange(saved.inner[kSavedK], {});
  const Tensor v = std::exchange(saved.inner[kSavedV], {});
  const Tensor out = std::exchange(saved.inner[kSavedAttention], {});
  const Tensor log_sum_exp = std::exchange(saved.inner[kSavedLogSumExp], {});
  take(kO, weight_gradient(gradient, out, backend));

  const Tensor d_out = input_gradient_of(gradient, weights.linears[kO], backend);
  Tensor dq(backend, q.type(), q.rows(), q.cols());
  Tensor dk(backend, k.type(), k.rows(), k.cols());
  Tensor dv(backend, v.type(), v.rows(), v.cols());
  backend.attention_backward({.q = q.view(),
                              .k = k.view(),
                              .v = v.view(),
                              .out = out.view(),
                              .log_sum_exp = log_sum_exp.view(),
                              .d_out = d_out.view(),
                              .dq = dq.view(),
                              .dk = dk.view(),
                              .dv = dv.view(),
                              .heads = config_.heads,
                              .kv_heads = config_.kv_heads,
                              .head_dim = config_.head_dim,
                              .length = saved.length,
                              .window = config_.sliding_window,
                              .scale = attention_scale()});
  rotate(dq, config_.heads, saved.length, backend, /*backward=*/true);
  rotate(dk, config_.kv_heads, saved.length, backend, /*backward=*/true);
  {
    const Tensor n = normalize(kBeforeAttention, weights, saved.input, backend);
    take(kV, weight_gradient(dv, n, backend));
    take(kK, weight_gradient(dk, n, backend));
    take(kQ, weight_gradient(dq, n, backend));
  }
  if (input_gradient == InputGradient::kNo) return;

  Tensor dn = input_gradient_of(dq, weights.linears[kQ], backend);
  add_input_gradient(dk, weights.linears[kK], dn.view(), true, backend);
  add_input_gradient(dv, weights.linears[kV], dn.view(), true, backend);
  backend.rms_norm_backward({.x = std::as_const(saved.input).view(),
                             .weight = weights.norms[kBeforeAttention].view(),
                             .dy = std::as_const(dn).view(),
                             .dx = gradient.view(),
                             .epsilon = config_.norm_epsilon,
                             .accumulate = true});
}

}  // namespace roundhouse
