#include "model/architectures/opt_block.h"

#include <utility>

#include "base/error.h"
#include "model/architectures/tensor_names.h"
#include "model/block/linear.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {
namespace {

enum GroupIndex { kQkv, kOut, kUp, kDown };

}  // namespace

OptBlock::OptBlock(const ModelConfig& config, std::int64_t max_length)
    : config_(config), attention_(config, max_length, -1, std::nullopt) {
  hidden_size_ = config.hidden_size;
  const BlockLayout layout = block_layout(config);
  prefix_ = layout.prefix;
  linears_ = layout.linears;
  norms_ = layout.norms;
  shared_inputs_ = {{"q_proj, k_proj, v_proj", {kQ, kK, kV}, config.hidden_size, true},
                    {"out_proj", {kOutProjection}, config.hidden_size, false},
                    {"fc1", {kFc1}, config.hidden_size, true},
                    {"fc2", {kFc2}, config.intermediate_size, false}};
  // Only a norm in front of the linears, and one with weights, can take up their scales.
  const bool norms = config.norm_first && config.affine_norms;
  if (norms) scale_sets_.push_back({.group = kQkv, .last_group = kOut, .norms = {0, 1}});
  scale_sets_.push_back({.group = kOut, .last_group = kOut, .norms = {}, .linear = kV});
  if (norms) scale_sets_.push_back({.group = kUp, .last_group = kUp, .norms = {2, 3}});
  // relu(x / s) = relu(x) / s for positive s.
  scale_sets_.push_back({.group = kDown, .last_group = kDown, .norms = {}, .linear = kFc1});
  score_linears_ = {kQ, kK};
  saved_width_ = (config.norm_first ? 6 : 8) * hidden_size_ + config.intermediate_size;
  saved_f32_width_ = attention_.saved_f32_width();
}

BlockWeights OptBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                            LoadLinears linears) const {
  BlockWeights weights = load_block(config_, checkpoint, block, backend, linears);
  if (!config_.affine_norms) {
    for (const float value : {1.0f, 0.0f, 1.0f, 0.0f}) {
      weights.norms.push_back(constant_row(hidden_size_, value, backend));
    }
  }
  return weights;
}

Tensor OptBlock::input_from_residual(int group, const BlockWeights& weights, const Tensor& residual,
                                     Backend& backend) const {
  return input_of(group == kQkv ? kAttentionNorm : kFinalNorm, weights, residual, backend);
}

void OptBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                     Backend& backend) const {
  switch (group) {
    case kQkv: {
      const Tensor x = std::move(state.input);
      state.input = std::move(attention_.forward(
          weights, x, state.length, SelfAttention::For::kForward, backend)[SelfAttention::kOutput]);
      return;
    }
    case kUp:
      state.input = fc1_and_relu(weights, state.input, backend);
      return;
    case kOut:
    case kDown:
      apply_linear(weights, group == kOut ? kOutProjection : kFc2, state.input,
                   state.residual.view(), true, backend);
      state.input = Tensor();
      if (!config_.norm_first) {
        normalize(group == kOut ? kAttentionNorm : kFinalNorm, weights, state.residual,
                  state.residual.view(), backend);
      }
      return;
    default:
      require(false, "no such group of linears");
  }
}

Tensor OptBlock::input_of(Norm norm, const BlockWeights& weights, const Tensor& residual,
                          Backend& backend) const {
  Tensor y(backend, backend.activation_type(), residual.rows(), hidden_size_);
  if (config_.norm_first) {
    normalize(norm, weights, residual, y.view(), backend);
  } else {
    backend.copy(residual.view(), y.view());
  }
  return y;
}

void OptBlock::normalize(Norm norm, const BlockWeights& weights, const Tensor& x, Matrix y,
                         Backend& backend) const {
  const std::size_t weight = norm == kAttentionNorm ? 0 : 2;  // its bias comes after it
  backend.layer_norm({.x = x.view(),
                      .weight = weights.norms[weight].view(),
                      .bias = weights.norms[weight + 1].view(),
                      .y = y,
                      .epsilon = config_.norm_epsilon});
}

Tensor OptBlock::fc1_and_relu(const BlockWeights& weights, const Tensor& x,
                              Backend& backend) const {
  Tensor inner = apply_linear(weights, kFc1, x, backend);
  backend.relu({.x = std::as_const(inner).view(), .y = inner.view()});
  return inner;
}

}  // namespace roundhouse
