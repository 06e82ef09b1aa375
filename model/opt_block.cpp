#include "model/opt_block.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/layout.h"
#include "model/weights.h"

namespace roundhouse {
namespace {

enum GroupIndex { kQkv, kOut, kUp, kDown, kGroups };

}  // namespace

OptBlock::OptBlock(const ModelConfig& config, std::int64_t max_length)
    : config_(config), max_length_(max_length) {
  require(max_length > 0, "a block for sequences without a token");
  hidden_size_ = config.hidden_size;
  linears_ = block_layout(config).linears;
  norm_names_ = block_layout(config).norms;
  groups_ = {{"q_proj, k_proj, v_proj", {kQ, kK, kV}, config.hidden_size, true},
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
}

std::string OptBlock::prefix(int block) const {
  return block_layout(config_).prefix + std::to_string(block);
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

void OptBlock::prepare(int group, const BlockWeights& weights, BlockState& state,
                       Backend& backend) const {
  require(group >= 0 && group < kGroups, "no such group of linears");
  if (group == kOut || group == kDown) {
    require(
        !state.input.empty() && state.input.cols() == groups_[static_cast<std::size_t>(group)].cols,
        "the input of this group is what apply() of the group before leaves");
    return;
  }
  state.input =
      input_of(group == kQkv ? kAttentionNorm : kFinalNorm, weights, state.residual, backend);
}

void OptBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                     Backend& backend) const {
  switch (group) {
    case kQkv: {
      check_sequences(state.residual, state.sequences, state.length);
      const Tensor q = project(kQ, weights, state.input, backend);
      const Tensor k = project(kK, weights, state.input, backend);
      const Tensor v = project(kV, weights, state.input, backend);
      state.input = Tensor();
      state.input = attend(q, k, v, state.length, nullptr, backend);
      return;
    }
    case kUp: {
      Tensor inner = project(kFc1, weights, state.input, backend);
      backend.relu({.x = std::as_const(inner).view(), .y = inner.view()});
      state.input = std::move(inner);
      return;
    }
    case kOut:
    case kDown:
      project(group == kOut ? kOutProjection : kFc2, weights, state.input, state.residual.view(),
              backend, true);
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

Tensor OptBlock::input_of(Norm norm, const BlockWeights& weights, const Tensor& x,
                          Backend& backend) const {
  Tensor y(backend, backend.activation_type(), x.rows(), hidden_size_);
  if (config_.norm_first) {
    normalize(norm, weights, x, y.view(), backend);
  } else {
    backend.copy(x.view(), y.view());
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

void OptBlock::project(LinearIndex linear, const BlockWeights& weights, const Tensor& x, Matrix y,
                       Backend& backend, bool accumulate) const {
  const Tensor& bias = weights.biases[linear];
  backend.linear({.x = x.view(),
                  .w = weights.linears[linear].view(),
                  .bias = bias.empty() ? ConstMatrix() : bias.view(),
                  .y = y,
                  .accumulate = accumulate});
}

Tensor OptBlock::project(LinearIndex linear, const BlockWeights& weights, const Tensor& x,
                         Backend& backend) const {
  Tensor y(backend, backend.activation_type(), x.rows(), linears_[linear].rows);
  project(linear, weights, x, y.view(), backend);
  return y;
}

Tensor OptBlock::attend(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t length,
                        Tensor* log_sum_exp, Backend& backend) const {
  Tensor out(backend, backend.activation_type(), q.rows(), q.cols());
  if (log_sum_exp) *log_sum_exp = Tensor(backend, DType::kF32, q.rows(), config_.heads);
  backend.attention({.q = q.view(),
                     .k = k.view(),
                     .v = v.view(),
                     .out = out.view(),
                     .heads = config_.heads,
                     .kv_heads = config_.kv_heads,
                     .head_dim = config_.head_dim,
                     .length = length,
                     .window = 0,
                     .scale = attention_scale(),
                     .log_sum_exp = log_sum_exp ? log_sum_exp->view() : Matrix()});
  return out;
}

float OptBlock::attention_scale() const {
  return 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
}

void OptBlock::check_sequences(const Tensor& residual, std::int64_t sequences,
                               std::int64_t length) const {
  require(length <= max_length_, "a sequence longer than this block was made for");
  require(residual.rows() == sequences * length, "rows are sequences times length");
}

}  // namespace roundhouse
