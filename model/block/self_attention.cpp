#include "model/block/self_attention.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/block/linear.h"

namespace roundhouse {

// In double: at position 100,000 a float angle is off by 0.004.
RotaryTables::RotaryTables(double theta, std::int64_t head_dim, std::int64_t max_length,
                           Backend& backend) {
  const std::int64_t half = head_dim / 2;
  HostTensor host_cos(DType::kF32, {max_length, half});
  HostTensor host_sin(DType::kF32, {max_length, half});
  for (std::int64_t j = 0; j < half; ++j) {
    const double frequency =
        std::pow(theta, -2.0 * static_cast<double>(j) / static_cast<double>(head_dim));
    for (std::int64_t p = 0; p < max_length; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      const auto at = static_cast<std::size_t>(p * half + j);
      host_cos.as<float>()[at] = static_cast<float>(std::cos(angle));
      host_sin.as<float>()[at] = static_cast<float>(std::sin(angle));
    }
  }
  cos = Tensor::upload(backend, host_cos.view(), DType::kF32);
  sin = Tensor::upload(backend, host_sin.view(), DType::kF32);
  backend.sync();  // the host tables end here
}

SelfAttention::SelfAttention(const ModelConfig& config, std::int64_t max_length,
                             std::optional<RotaryTables> rotary)
    : heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      window_(config.sliding_window),
      max_length_(max_length),
      rotary_(std::move(rotary)) {
  require(max_length > 0, "a block for sequences without a token");
}

std::vector<Tensor> SelfAttention::forward(const BlockWeights& weights, const Tensor& x,
                                           std::int64_t length, LogSumExp log_sum_exp,
                                           Backend& backend) const {
  require(length > 0 && length <= max_length_, "a sequence longer than this block was made for");
  require(x.rows() % length == 0, "rows are sequences times length");
  std::vector<Tensor> inner;
  for (const Linear linear : {kQ, kK, kV})
    inner.push_back(apply_linear(weights, linear, x, backend));
  rotate(inner[kQueries], heads_, length, false, backend);
  rotate(inner[kKeys], kv_heads_, length, false, backend);
  inner.emplace_back(backend, backend.activation_type(), x.rows(), heads_ * head_dim_);
  if (log_sum_exp == LogSumExp::kYes) inner.emplace_back(backend, DType::kF32, x.rows(), heads_);
  backend.attention(
      {.q = std::as_const(inner[kQueries]).view(),
       .k = std::as_const(inner[kKeys]).view(),
       .v = std::as_const(inner[kValues]).view(),
       .out = inner[kOutput].view(),
       .heads = heads_,
       .kv_heads = kv_heads_,
       .head_dim = head_dim_,
       .length = length,
       .window = window_,
       .scale = scale(),
       .log_sum_exp = log_sum_exp == LogSumExp::kYes ? inner[kLogSumExp].view() : Matrix()});
  return inner;
}

SelfAttention::Gradients SelfAttention::backward(const BlockWeights& weights,
                                                 std::vector<Tensor> inner, const Tensor& dy,
                                                 std::int64_t length, const TakeGradient& take,
                                                 Backend& backend) const {
  const Tensor q = std::move(inner[kQueries]), k = std::move(inner[kKeys]),
               v = std::move(inner[kValues]), out = std::move(inner[kOutput]),
               log_sum_exp = std::move(inner[kLogSumExp]);
  take(kO, {dy, out, length});
  const Tensor d_out = input_gradient_of(dy, weights.linears[kO], backend);
  Gradients gradients{.dq = Tensor(backend, q.type(), q.rows(), q.cols()),
                      .dk = Tensor(backend, k.type(), k.rows(), k.cols()),
                      .dv = Tensor(backend, v.type(), v.rows(), v.cols())};
  backend.attention_backward({.q = q.view(),
                              .k = k.view(),
                              .v = v.view(),
                              .out = out.view(),
                              .log_sum_exp = log_sum_exp.view(),
                              .d_out = d_out.view(),
                              .dq = gradients.dq.view(),
                              .dk = gradients.dk.view(),
                              .dv = gradients.dv.view(),
                              .heads = heads_,
                              .kv_heads = kv_heads_,
                              .head_dim = head_dim_,
                              .length = length,
                              .window = window_,
                              .scale = scale()});
  rotate(gradients.dq, heads_, length, true, backend);
  rotate(gradients.dk, kv_heads_, length, true, backend);
  return gradients;
}

void SelfAttention::take_gradients(const Gradients& gradients, const Tensor& x, std::int64_t length,
                                   const TakeGradient& take) const {
  take(kV, {gradients.dv, x, length});
  take(kK, {gradients.dk, x, length});
  take(kQ, {gradients.dq, x, length});
}

void SelfAttention::add_input_gradients(const BlockWeights& weights, const Gradients& gradients,
                                        Matrix dx, bool accumulate, Backend& backend) const {
  add_input_gradient(gradients.dq, weights.linears[kQ], dx, accumulate, backend);
  add_input_gradient(gradients.dk, weights.linears[kK], dx, true, backend);
  add_input_gradient(gradients.dv, weights.linears[kV], dx, true, backend);
}

void SelfAttention::rotate(Tensor& x, std::int64_t heads, std::int64_t length, bool backward,
                           Backend& backend) const {
  if (!rotary_) return;
  backend.rope({.x = x.view(),
                .cos = rotary_->cos.view(),
                .sin = rotary_->sin.view(),
                .heads = heads,
                .head_dim = head_dim_,
                .length = length,
                .backward = backward});
}

float SelfAttention::scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim_)); }

}  // namespace roundhouse
