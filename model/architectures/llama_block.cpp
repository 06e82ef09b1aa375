#include "model/architectures/llama_block.h"

#include <utility>

#include "base/error.h"
#include "model/architectures/tensor_names.h"
#include "model/block/linear.h"

namespace roundhouse {
namespace {

enum GroupIndex { kQkv, kOut, kGateUp, kDownProjection };

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend)
    : config_(config),
      attention_(config, max_length,
                 RotaryTables(config.rope_theta, config.head_dim, max_length, backend)) {
  hidden_size_ = config.hidden_size;
  const BlockLayout layout = block_layout(config);
  prefix_ = layout.prefix;
  linears_ = layout.linears;
  norm_names_ = layout.norms;
  const std::int64_t attention = config.heads * config.head_dim;
  shared_inputs_ = {{"q_proj, k_proj, v_proj",
                     {SelfAttention::kQ, SelfAttention::kK, SelfAttention::kV},
                     config.hidden_size,
                     true},
                    {"o_proj", {kO}, attention, false},
                    {"gate_proj, up_proj", {kGate, kUp}, config.hidden_size, true},
                    {"down_proj", {kDown}, config.intermediate_size, false}};
  scale_sets_.push_back({.group = kQkv, .last_group = kOut, .norms = {0}});
  // With grouped queries several columns of o read one row of v.
  if (config.kv_heads == config.heads) {
    scale_sets_.push_back(
        {.group = kOut, .last_group = kOut, .norms = {}, .linear = SelfAttention::kV});
  }
  scale_sets_.push_back({.group = kGateUp, .last_group = kDownProjection, .norms = {1}});
  scale_sets_.push_back(
      {.group = kDownProjection, .last_group = kDownProjection, .norms = {}, .linear = kUp});
  score_linears_ = {SelfAttention::kQ, SelfAttention::kK};
  saved_width_ = 2 * hidden_size_ + 2 * attention + 2 * config.kv_heads * config.head_dim +
                 2 * config.intermediate_size;
  saved_f32_width_ = config.heads;
}

BlockWeights LlamaBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                              LoadLinears linears) const {
  return load_block(config_, checkpoint, block, backend, linears);
}

Tensor LlamaBlock::input_from_residual(int group, const BlockWeights& weights,
                                       const Tensor& residual, Backend& backend) const {
  return normalize(group == kQkv ? kBeforeAttention : kBeforeMlp, weights, residual, backend);
}

void LlamaBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                       Backend& backend) const {
  switch (group) {
    case kQkv: {
      const Tensor x = std::move(state.input);
      state.input =
          std::move(attention_.forward(weights, x, state.length, SelfAttention::LogSumExp::kNo,
                                       backend)[SelfAttention::kOutput]);
      return;
    }
    case kGateUp: {
      Tensor gate = apply_linear(weights, kGate, state.input, backend);
      const Tensor up = apply_linear(weights, kUp, state.input, backend);
      backend.silu_gate({.gate = std::as_const(gate).view(), .up = up.view(), .y = gate.view()});
      state.input = std::move(gate);
      return;
    }
    case kOut:
    case kDownProjection:
      apply_linear(weights, group == kOut ? kO : kDown, state.input, state.residual.view(), true,
                   backend);
      state.input = Tensor();
      return;
    default:
      require(false, "no such group of linears");
  }
}

Tensor LlamaBlock::normalize(NormIndex norm, const BlockWeights& weights, const Tensor& x,
                             Backend& backend) const {
  Tensor y(backend, backend.activation_type(), x.rows(), hidden_size_);
  backend.rms_norm({.x = x.view(),
                    .weight = weights.norms[norm].view(),
                    .y = y.view(),
                    .epsilon = config_.norm_epsilon});
  return y;
}

}  // namespace roundhouse
