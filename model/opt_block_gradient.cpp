// The backward pass of OptBlock.
#include <utility>

#include "model/linear_gradient.h"
#include "model/opt_block.h"

namespace roundhouse {
namespace {

Tensor copy_of(const Tensor& from, Backend& backend) {
  Tensor to(backend, from.type(), from.rows(), from.cols());
  backend.copy(from.view(), to.view());
  return to;
}

}  // namespace

void OptBlock::forward_saving_all(const BlockWeights& weights, BlockState& state,
                                  SavedActivations& saved, Backend& backend) const {
  check_sequences(state.residual, state.sequences, state.length);
  saved.inner.resize(kSavedCount);
  auto& inner = saved.inner;
  {
    const Tensor n = input_of(kAttentionNorm, weights, state.residual, backend);
    inner[kSavedQ] = project(kQ, weights, n, backend);
    inner[kSavedK] = project(kK, weights, n, backend);
    inner[kSavedV] = project(kV, weights, n, backend);
  }
  inner[kSavedAttention] = attend(inner[kSavedQ], inner[kSavedK], inner[kSavedV], state.length,
                                  &inner[kSavedLogSumExp], backend);
  project(kOutProjection, weights, inner[kSavedAttention], state.residual.view(), backend, true);
  inner[kSavedMiddle] = copy_of(state.residual, backend);
  if (!config_.norm_first) {
    normalize(kAttentionNorm, weights, state.residual, state.residual.view(), backend);
  }
  inner[kSavedInner] =
      project(kFc1, weights, input_of(kFinalNorm, weights, state.residual, backend), backend);
  backend.relu({.x = std::as_const(inner[kSavedInner]).view(), .y = inner[kSavedInner].view()});
  project(kFc2, weights, inner[kSavedInner], state.residual.view(), backend, true);
  if (!config_.norm_first) {
    inner[kSavedSum] = copy_of(state.residual, backend);
    normalize(kFinalNorm, weights, state.residual, state.residual.view(), backend);
  }
}

Tensor OptBlock::backward_from_all(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                                   const TakeGradient& take, InputGradient input_gradient,
                                   Backend& backend) const {
  mlp_backward(weights, saved, dy, take, backend);
  attention_backward(weights, saved, dy, take, input_gradient, backend);
  return input_gradient == InputGradient::kYes ? std::move(dy) : Tensor();
}

void OptBlock::mlp_backward(const BlockWeights& weights, SavedActivations& saved, Tensor& gradient,
                            const TakeGradient& take, Backend& backend) const {
  if (!config_.norm_first) {
    const Tensor sum = std::exchange(saved.inner[kSavedSum], {});
    norm_backward(kFinalNorm, weights, sum, gradient, gradient, false, backend);
  }
  const Tensor inner = std::exchange(saved.inner[kSavedInner], {});
  take(kFc2, weight_gradient(gradient, inner, backend));
  Tensor d_inner = input_gradient_of(gradient, weights.linears[kFc2], backend);
  backend.relu_backward(
      {.y = inner.view(), .dy = std::as_const(d_inner).view(), .dx = d_inner.view()});

  const Tensor middle = std::exchange(saved.inner[kSavedMiddle], {});
  {
    // The input of fc1 is a norm of the sum, wherever the norms stand.
    Tensor m(backend, backend.activation_type(), middle.rows(), hidden_size_);
    normalize(config_.norm_first ? kFinalNorm : kAttentionNorm, weights, middle, m.view(), backend);
    take(kFc1, weight_gradient(d_inner, m, backend));
  }
  if (config_.norm_first) {
    const Tensor dm = input_gradient_of(d_inner, weights.linears[kFc1], backend);
    norm_backward(kFinalNorm, weights, middle, dm, gradient, true, backend);
  } else {
    add_input_gradient(d_inner, weights.linears[kFc1], gradient.view(), true, backend);
    norm_backward(kAttentionNorm, weights, middle, gradient, gradient, false, backend);
  }
}

void OptBlock::attention_backward(const BlockWeights& weights, SavedActivations& saved,
                                  Tensor& gradient, const TakeGradient& take,
                                  InputGradient input_gradient, Backend& backend) const {
  const Tensor q = std::exchange(saved.inner[kSavedQ], {});
  const Tensor k = std::exchange(saved.inner[kSavedK], {});
  const Tensor v = std::exchange(saved.inner[kSavedV], {});
  const Tensor out = std::exchange(saved.inner[kSavedAttention], {});
  const Tensor log_sum_exp = std::exchange(saved.inner[kSavedLogSumExp], {});
  take(kOutProjection, weight_gradient(gradient, out, backend));

  const Tensor d_out = input_gradient_of(gradient, weights.linears[kOutProjection], backend);
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
                              .window = 0,
                              .scale = attention_scale()});
  {
    const Tensor n = input_of(kAttentionNorm, weights, saved.input, backend);
    take(kV, weight_gradient(dv, n, backend));
    take(kK, weight_gradient(dk, n, backend));
    take(kQ, weight_gradient(dq, n, backend));
  }
  if (input_gradient == InputGradient::kNo) return;

  Tensor dn(backend, backend.activation_type(), gradient.rows(), hidden_size_);
  Tensor& into = config_.norm_first ? dn : gradient;
  add_input_gradient(dq, weights.linears[kQ], into.view(), !config_.norm_first, backend);
  add_input_gradient(dk, weights.linears[kK], into.view(), true, backend);
  add_input_gradient(dv, weights.linears[kV], into.view(), true, backend);
  if (config_.norm_first) {
    norm_backward(kAttentionNorm, weights, saved.input, dn, gradient, true, backend);
  }
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
