// Where the gradients of a whole model begin: CausalLM::loss_gradient().
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/block/linear.h"
#include "model/causal_lm.h"

namespace roundhouse {
namespace {

// A range of the vocabulary is a shape that matrix products like, and follows from the problem alone.
std::int64_t columns_at_once(std::int64_t rows, std::int64_t vocabulary, std::size_t logit_bytes) {
  constexpr std::int64_t kLeast = 1024;
  const auto columns =
      static_cast<std::int64_t>(logit_bytes / sizeof(float)) / rows / kLeast * kLeast;
  return std::min(vocabulary, std::max(kLeast, columns));
}

// Token i is scored by how well it predicts token i + 1; the last one has none.
Tensor upload_targets(std::span<const std::int32_t> ids, Backend& backend) {
  std::vector<std::int64_t> targets(ids.begin() + 1, ids.end());
  targets.push_back(-1);
  return upload_index(targets, backend);
}

}  // namespace

CausalLM::LossGradient CausalLM::loss_gradient(const Head& head, ConstMatrix residual,
                                               std::span<const std::int32_t> ids, Backend& backend,
                                               std::size_t logit_bytes) const {
  const std::int64_t rows = residual.rows;
  require(rows > 1 && std::ssize(ids) == rows,
          "the loss of a sequence takes two tokens, an id each");
  for (const std::int32_t id : ids) {
    require(id >= 0 && id < config_.vocabulary, "a token id is outside the vocabulary");
  }
  const DType type = backend.activation_type();
  const HeadInput input = head_input(config_, head, residual, backend);
  const Tensor targets = upload_targets(ids, backend);
  Tensor log_sum_exp(backend, DType::kF32, rows, 1), losses(backend, DType::kF32, rows, 1);
  backend.zero(losses.view());

  const std::int64_t each = columns_at_once(rows, config_.vocabulary, logit_bytes);
  const std::int64_t ranges = (config_.vocabulary + each - 1) / each;
  struct Range {
    std::int64_t first;
    ConstMatrix weight;
    Matrix logits;
  };
  Tensor logits(backend, DType::kF32, rows, each);
  const auto range_at = [&](std::int64_t i) {
    const std::int64_t first = i * each, end = std::min(config_.vocabulary, first + each);
    return Range{first, head.weight.view().row_range(first, end),
                 logits.view().col_range(0, end - first)};
  };
  const auto compute = [&](const Range& range) {
    backend.linear({.x = input.x, .w = range.weight, .bias = {}, .y = range.logits});
    cap(range.logits, backend);
  };
  for (std::int64_t i = 0; i < ranges; ++i) {
    const Range range = range_at(i);
    compute(range);
    backend.log_sum_exp({.x = range.logits, .sums = log_sum_exp.view(), .accumulate = i > 0});
  }

  // Summed in F32 over all ranges. Backwards: the logits of the last one are there.
  Tensor sum(backend, DType::kF32, rows, config_.embedding_size);
  Tensor converted;
  if (type != DType::kF32) converted = Tensor(backend, type, rows, each);
  for (std::int64_t i = ranges - 1; i >= 0; --i) {
    const Range range = range_at(i);
    if (i + 1 < ranges) compute(range);
    const Matrix d_logits =
        converted.empty() ? range.logits : converted.view().col_range(0, range.logits.cols);
    backend.cross_entropy_backward({.logits = range.logits,
                                    .first = range.first,
                                    .log_sum_exp = std::as_const(log_sum_exp).view(),
                                    .target = targets.view(),
                                    .scale = 1.0f / static_cast<float>(rows - 1),
                                    .d_logits = d_logits,
                                    .loss = losses.view(),
                                    .soft_cap = config_.logit_cap});
    backend.matmul({.a = d_logits,
                    .b = range.weight,
                    .c = sum.view(),
                    .beta = i + 1 < ranges ? 1.0f : 0.0f,
                    .of_activations = true});
  }

  LossGradient result{.loss = 0.0, .residual = {}};
  if (type == DType::kF32) {
    result.residual = std::move(sum);
  } else {
    result.residual = Tensor(backend, type, rows, config_.embedding_size);
    backend.copy(std::as_const(sum).view(), result.residual.view());
  }
  Tensor& dx = result.residual;
  if (!head.project_out.empty()) dx = input_gradient_of(dx, head.project_out, backend);
  if (config_.logits_divisor != 1.0f) {
    backend.scaled_sum({.x = std::as_const(dx).view(),
                        .scale = 1.0f / config_.logits_divisor,
                        .y = dx.view(),
                        .accumulate = false});
  }
  if (!head.norm.empty()) {
    const auto norm_backward = [&]<class Op>(Op op) {
      op.x = residual;
      op.weight = head.norm.view();
      op.dy = std::as_const(dx).view();
      op.dx = dx.view();
      op.epsilon = config_.norm_epsilon;
      return op;
    };
    if (head.norm_bias.empty()) {
      RmsNormBackward rms = norm_backward(RmsNormBackward());
      rms.offset = config_.norm_offset;
      backend.rms_norm_backward(rms);
    } else {
      backend.layer_norm_backward(norm_backward(LayerNormBackward()));
    }
  }
  std::vector<float> of_tokens(static_cast<std::size_t>(rows));
  backend.download(losses.f32(), std::as_writable_bytes(std::span(of_tokens)));
  const double total = std::accumulate(of_tokens.begin(), of_tokens.end(), 0.0);
  result.loss = total / static_cast<double>(rows - 1);
  return result;
}

}  // namespace roundhouse
