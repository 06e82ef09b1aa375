#include "model/opt_block.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/layout.h"
#include "model/weights.h"

namespace roundhouse {
namespace {

enum LinearIndex { kQ, kK, kV, kOutProjection, kFc1, kFc2 };
enum GroupIndex { kQkv, kOut, kUp, kDown, kGroups };
enum NormIndex { kAttentionWeight, kAttentionBias, kFinalWeight, kFinalBias };

// y may be x.
void layer_norm(const BlockWeights& weights, bool attention, float epsilon, ConstMatrix x, Matrix y,
                Backend& backend) {
  backend.layer_norm({.x = x,
                      .weight = weights.norms[attention ? kAttentionWeight : kFinalWeight].view(),
                      .bias = weights.norms[attention ? kAttentionBias : kFinalBias].view(),
                      .y = y,
                      .epsilon = epsilon});
}

void linear(const BlockWeights& weights, LinearIndex index, const Tensor& x, Matrix y,
            Backend& backend, bool accumulate = false) {
  const Tensor& bias = weights.biases[index];
  backend.linear({.x = x.view(),
                  .w = weights.linears[index].view(),
                  .bias = bias.empty() ? ConstMatrix() : bias.view(),
                  .y = y,
                  .accumulate = accumulate});
}

}  // namespace

OptBlock::OptBlock(const ModelConfig& config, std::int64_t max_length)
    : config_(config), max_length_(max_length) {
  require(max_length > 0, "a block for sequences without a token");
  hidden_size_ = config.hidden_size;
  linears_ = block_layout(config).linears;
  groups_ = {{"q_proj, k_proj, v_proj", {kQ, kK, kV}, config.hidden_size, true},
             {"out_proj", {kOutProjection}, config.hidden_size, false},
             {"fc1", {kFc1}, config.hidden_size, true},
             {"fc2", {kFc2}, config.intermediate_size, false}};
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
  state.input = Tensor(backend, backend.activation_type(), state.residual.rows(), hidden_size_);
  const ConstMatrix residual = std::as_const(state.residual).view();
  if (config_.norm_first) {
    layer_norm(weights, group == kQkv, config_.norm_epsilon, residual, state.input.view(), backend);
  } else {
    backend.copy(residual, state.input.view());
  }
}

void OptBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                     Backend& backend) const {
  switch (group) {
    case kQkv:
      attend(weights, state, backend);
      return;
    case kUp: {
      Tensor inner(backend, backend.activation_type(), state.input.rows(),
                   config_.intermediate_size);
      linear(weights, kFc1, state.input, inner.view(), backend);
      backend.relu({.x = std::as_const(inner).view(), .y = inner.view()});
      state.input = std::move(inner);
      return;
    }
    case kOut:
    case kDown:
      linear(weights, group == kOut ? kOutProjection : kFc2, state.input, state.residual.view(),
             backend, true);
      state.input = Tensor();
      if (!config_.norm_first) {
        layer_norm(weights, group == kOut, config_.norm_epsilon,
                   std::as_const(state.residual).view(), state.residual.view(), backend);
      }
      return;
    default:
      require(false, "no such group of linears");
  }
}

// Queries, keys and values of state.input, and the attention between them, which becomes
// state.input.
void OptBlock::attend(const BlockWeights& weights, BlockState& state, Backend& backend) const {
  require(state.length <= max_length_, "a sequence longer than this block was made for");
  require(state.residual.rows() == state.sequences * state.length,
          "rows are sequences times length");
  const auto project = [&](LinearIndex index) {
    Tensor y(backend, backend.activation_type(), state.input.rows(), hidden_size_);
    linear(weights, index, state.input, y.view(), backend);
    return y;
  };
  const Tensor q = project(kQ);
  const Tensor k = project(kK);
  const Tensor v = project(kV);
  state.input = Tensor();

  Tensor out(backend, backend.activation_type(), q.rows(), q.cols());
  backend.attention({.q = q.view(),
                     .k = k.view(),
                     .v = v.view(),
                     .out = out.view(),
                     .heads = config_.heads,
                     .kv_heads = config_.heads,
                     .head_dim = config_.head_dim,
                     .length = state.length,
                     .window = 0,
                     .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))});
  state.input = std::move(out);
}

}  // namespace roundhouse
