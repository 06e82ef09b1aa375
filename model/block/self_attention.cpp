#include "model/block/self_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/block/linear.h"

namespace roundhouse {
namespace {

// In double: at position 100,000 a float angle is off by 0.004.
RotaryTables::Tables tables_of(const std::vector<double>& frequencies, double magnitude,
                               std::int64_t positions, Backend& backend) {
  const auto pairs = std::ssize(frequencies);
  HostTensor host_cos(DType::kF32, {positions, pairs});
  HostTensor host_sin(DType::kF32, {positions, pairs});
  for (std::int64_t j = 0; j < pairs; ++j) {
    for (std::int64_t p = 0; p < positions; ++p) {
      const double angle = static_cast<double>(p) * frequencies[j];
      const auto at = static_cast<std::size_t>(p * pairs + j);
      host_cos.as<float>()[at] = static_cast<float>(magnitude * std::cos(angle));
      host_sin.as<float>()[at] = static_cast<float>(magnitude * std::sin(angle));
    }
  }
  RotaryTables::Tables tables{.cos = Tensor::upload(backend, host_cos.view(), DType::kF32),
                              .sin = Tensor::upload(backend, host_sin.view(), DType::kF32)};
  backend.sync();  // the host tables end here
  return tables;
}

// Heads side by side, each as a row of its own, where the norm's weights are as wide as a head.
template <class View>
View rows_of(View x, std::int64_t width) {
  x.rows *= x.cols / width;
  x.cols = x.stride = width;
  return x;
}

}  // namespace

RotaryTables::OfRope::OfRope(const RopeConfig& rope, std::int64_t max_length, Backend& backend)
    : longest_short(max_length) {
  if (rope.scaling == RopeConfig::Scaling::kLongRope && max_length > rope.original_positions) {
    longest_short = rope.original_positions;
    long_ones =
        tables_of(rotary_frequencies(rope, max_length), rope.magnitude, max_length, backend);
  }
  short_ones =
      tables_of(rotary_frequencies(rope, longest_short), rope.magnitude, longest_short, backend);
}

RotaryTables::RotaryTables(const ModelConfig& config, std::int64_t max_length, Backend& backend)
    : all_(config.rope, max_length, backend) {
  if (config.window_rope) windowed_.emplace(*config.window_rope, max_length, backend);
}

const RotaryTables::Tables& RotaryTables::of(bool windowed, std::int64_t length) const {
  const OfRope& rope = windowed && windowed_ ? *windowed_ : all_;
  return length > rope.longest_short ? rope.long_ones : rope.short_ones;
}

SelfAttention::SelfAttention(const ModelConfig& config, std::int64_t max_length, int query_norm,
                             std::optional<RotaryTables> rotary)
    : config_(config),
      heads_(config.heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      max_length_(max_length),
      scale_(config.attention_scale > 0.0f ? config.attention_scale
                                           : 1.0f / std::sqrt(static_cast<float>(head_dim_))),
      inputs_(config.fused_linears ? 1 : 3),
      query_norm_(query_norm),
      rotary_(std::move(rotary)) {
  require(max_length > 0, "a block for sequences without a token");
  require(query_norm < 0 || inputs_ == 3, "norms of queries that are fused with keys and values");
}

std::int64_t SelfAttention::saved_width() const {
  const std::int64_t queries = heads_ * head_dim_, keys = kv_heads_ * head_dim_;
  return 2 * queries + 2 * keys + (query_norm_ >= 0 ? queries + keys : 0);
}

SelfAttention::Heads SelfAttention::heads_in(Tensor& first, Tensor& second, Tensor& third) const {
  if (inputs_ == 3) return {first.view(), second.view(), third.view()};
  const Matrix all = first.view();
  const std::int64_t queries = heads_ * head_dim_, keys = kv_heads_ * head_dim_;
  return {all.col_range(0, queries), all.col_range(queries, queries + keys),
          all.col_range(queries + keys, queries + 2 * keys)};
}

std::vector<Tensor> SelfAttention::forward(const BlockWeights& weights, const Tensor& x,
                                           std::int64_t length, For purpose,
                                           Backend& backend) const {
  require(length > 0 && length <= max_length_, "a sequence longer than this block was made for");
  require(x.rows() % length == 0, "rows are sequences times length");
  const bool saves = purpose == For::kBackward;
  std::vector<Tensor> inner(kInner);
  for (int i = 0; i < inputs_; ++i) inner[kQueries + i] = apply_linear(weights, i, x, backend);
  if (query_norm_ >= 0) {
    for (const int i : {0, 1}) {
      Tensor& y = inner[kQueries + i];
      const Tensor& weight = weights.norms[query_norm_ + i];
      if (!saves) {
        normalize(weight, y, y, backend);
        continue;
      }
      Tensor& raw = inner[kRawQueries + i] = std::move(y);
      y = Tensor(backend, raw.type(), raw.rows(), raw.cols());
      normalize(weight, raw, y, backend);
    }
  }
  const Heads heads = heads_in(inner[kQueries], inner[kKeys], inner[kValues]);
  rotate(heads.q, heads_, weights.block, length, false, backend);
  rotate(heads.k, kv_heads_, weights.block, length, false, backend);
  inner[kOutput] = Tensor(backend, backend.activation_type(), x.rows(), heads_ * head_dim_);
  if (saves) inner[kLogSumExp] = Tensor(backend, DType::kF32, x.rows(), heads_);
  backend.attention({.q = heads.q,
                     .k = heads.k,
                     .v = heads.v,
                     .out = inner[kOutput].view(),
                     .heads = heads_,
                     .kv_heads = kv_heads_,
                     .head_dim = head_dim_,
                     .length = length,
                     .window = config_.window_of(weights.block),
                     .scale = scale_,
                     .log_sum_exp = saves ? inner[kLogSumExp].view() : Matrix(),
                     .score_cap = config_.score_cap});
  return inner;
}

SelfAttention::Gradients SelfAttention::backward(const BlockWeights& weights,
                                                 std::vector<Tensor> inner, const Tensor& dy,
                                                 std::int64_t length, const TakeGradient& take,
                                                 Backend& backend) const {
  const Tensor out = std::move(inner[kOutput]), log_sum_exp = std::move(inner[kLogSumExp]);
  take(output_linear(), {dy, out, length});
  const Tensor d_out = input_gradient_of(dy, weights.linears[output_linear()], backend);
  Gradients gradients(3);
  for (int i = 0; i < inputs_; ++i) {
    const Tensor& y = inner[kQueries + i];
    gradients[i] = Tensor(backend, y.type(), y.rows(), y.cols());
  }
  const Heads heads = heads_in(inner[kQueries], inner[kKeys], inner[kValues]);
  const Heads d_heads = heads_in(gradients[0], gradients[1], gradients[2]);
  backend.attention_backward({.q = heads.q,
                              .k = heads.k,
                              .v = heads.v,
                              .out = out.view(),
                              .log_sum_exp = log_sum_exp.view(),
                              .d_out = d_out.view(),
                              .dq = d_heads.q,
                              .dk = d_heads.k,
                              .dv = d_heads.v,
                              .heads = heads_,
                              .kv_heads = kv_heads_,
                              .head_dim = head_dim_,
                              .length = length,
                              .window = config_.window_of(weights.block),
                              .scale = scale_,
                              .score_cap = config_.score_cap});
  rotate(d_heads.q, heads_, weights.block, length, true, backend);
  rotate(d_heads.k, kv_heads_, weights.block, length, true, backend);
  if (query_norm_ >= 0) {
    for (const int i : {0, 1}) {
      normalize_backward(weights.norms[query_norm_ + i], inner[kRawQueries + i], gradients[i],
                         backend);
    }
  }
  gradients.resize(static_cast<std::size_t>(inputs_));
  return gradients;
}

void SelfAttention::take_gradients(const Gradients& gradients, const Tensor& x, std::int64_t length,
                                   const TakeGradient& take) const {
  for (int i = inputs_ - 1; i >= 0; --i) take(i, {gradients[i], x, length});
}

void SelfAttention::add_input_gradients(const BlockWeights& weights, const Gradients& gradients,
                                        Matrix dx, bool accumulate, Backend& backend) const {
  for (int i = 0; i < inputs_; ++i) {
    add_input_gradient(gradients[i], weights.linears[i], dx, accumulate || i > 0, backend);
  }
}

void SelfAttention::rotate(Matrix x, std::int64_t heads, std::int64_t block, std::int64_t length,
                           bool backward, Backend& backend) const {
  if (!rotary_) return;
  const RotaryTables::Tables& tables = rotary_->of(config_.has_window(block), length);
  backend.rope({.x = x,
                .cos = tables.cos.view(),
                .sin = tables.sin.view(),
                .heads = heads,
                .head_dim = head_dim_,
                .length = length,
                .backward = backward});
}

void SelfAttention::normalize(const Tensor& weight, const Tensor& x, Tensor& y,
                              Backend& backend) const {
  backend.rms_norm({.x = rows_of(x.view(), weight.cols()),
                    .weight = weight.view(),
                    .y = rows_of(y.view(), weight.cols()),
                    .epsilon = config_.norm_epsilon,
                    .offset = config_.norm_offset});
}

void SelfAttention::normalize_backward(const Tensor& weight, const Tensor& x, Tensor& dy,
                                       Backend& backend) const {
  const Matrix d = rows_of(dy.view(), weight.cols());
  backend.rms_norm_backward({.x = rows_of(x.view(), weight.cols()),
                             .weight = weight.view(),
                             .dy = d,
                             .dx = d,
                             .epsilon = config_.norm_epsilon,
                             .offset = config_.norm_offset});
}

}  // namespace roundhouse
