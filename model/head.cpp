#include "model/head.h"

#include <utility>

#include "model/architectures/tensor_names.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {

Head load_head_norm(const ModelConfig& config, const Checkpoint& checkpoint, Backend& backend) {
  const OuterLayout layout = outer_layout(config);
  Head head;
  if (!layout.norm.empty()) {
    head.norm = load_weight(checkpoint, layout.norm, {config.hidden_size}, backend);
  }
  if (!layout.norm_bias.empty()) {
    head.norm_bias = load_weight(checkpoint, layout.norm_bias, {config.hidden_size}, backend);
  }
  if (config.final_norm && !config.affine_norms) {
    head.norm = constant_row(config.hidden_size, 1.0f, backend);
    head.norm_bias = constant_row(config.hidden_size, 0.0f, backend);
  }
  if (!layout.project_out.empty()) {
    head.project_out = load_weight(checkpoint, layout.project_out,
                                   {config.embedding_size, config.hidden_size}, backend);
  }
  backend.sync();
  return head;
}

HeadInput head_input(const ModelConfig& config, const Head& head, ConstMatrix residual,
                     Backend& backend) {
  const DType type = backend.activation_type();
  HeadInput input{.x = residual, .normed = {}, .scaled = {}, .projected = {}};
  ConstMatrix& x = input.x;
  if (!head.norm.empty()) {
    Tensor& normed = input.normed = Tensor(backend, type, x.rows, x.cols);
    const float epsilon = config.norm_epsilon;
    if (head.norm_bias.empty()) {
      backend.rms_norm({.x = x,
                        .weight = head.norm.view(),
                        .y = normed.view(),
                        .epsilon = epsilon,
                        .offset = config.norm_offset});
    } else {
      backend.layer_norm({.x = x,
                          .weight = head.norm.view(),
                          .bias = head.norm_bias.view(),
                          .y = normed.view(),
                          .epsilon = epsilon});
    }
    x = std::as_const(normed).view();
  }
  if (config.logits_divisor != 1.0f) {
    Tensor& scaled = input.scaled = Tensor(backend, type, x.rows, x.cols);
    backend.scaled_sum(
        {.x = x, .scale = 1.0f / config.logits_divisor, .y = scaled.view(), .accumulate = false});
    x = std::as_const(scaled).view();
  }
  if (!head.project_out.empty()) {
    Tensor& projected = input.projected = Tensor(backend, type, x.rows, config.embedding_size);
    backend.linear({.x = x, .w = head.project_out.view(), .bias = {}, .y = projected.view()});
    x = std::as_const(projected).view();
  }
  return input;
}

}  // namespace roundhouse
