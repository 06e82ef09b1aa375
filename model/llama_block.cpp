#include "model/llama_block.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/layout.h"

namespace roundhouse {
namespace {

enum GroupIndex { kQkv, kOut, kGateUp, kDownProjection, kGroups };

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend)
    : config_(config), max_length_(max_length) {
  require(max_length > 0, "a block for sequences without a token");
  hidden_size_ = config.hidden_size;
  linears_ = block_layout(config).linears;
  norm_names_ = block_layout(config).norms;
  const std::int64_t attention = config.heads * config.head_dim;
  groups_ = {{"q_proj, k_proj, v_proj", {kQ, kK, kV}, config.hidden_size, true},
             {"o_proj", {kO}, attention, false},
             {"gate_proj, up_proj", {kGate, kUp}, config.hidden_size, true},
             {"down_proj", {kDown}, config.intermediate_size, false}};
  scale_sets_.push_back({.group = kQkv, .last_group = kOut, .norms = {0}});
  // With grouped queries several columns of o read one row of v.
  if (config.kv_heads == config.heads) {
    scale_sets_.push_back({.group = kOut, .last_group = kOut, .norms = {}, .linear = kV});
  }
  scale_sets_.push_back({.group = kGateUp, .last_group = kDownProjection, .norms = {1}});
  scale_sets_.push_back(
      {.group = kDownProjection, .last_group = kDownProjection, .norms = {}, .linear = kUp});
  score_linears_ = {kQ, kK};

  // Angle of pair j at position p: p theta^(-2j / head_dim). In double: at position 100,000 a float
  // angle is off by 0.004.
  const std::int64_t half = config.head_dim / 2;
  HostTensor cos(DType::kF32, {max_length, half});
  HostTensor sin(DType::kF32, {max_length, half});
  for (std::int64_t j = 0; j < half; ++j) {
    const double frequency = std::pow(
        config.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(config.head_dim));
    for (std::int64_t p = 0; p < max_length; ++p) {
      const double angle = static_cast<double>(p) * frequency;
      cos.as<float>()[static_cast<std::size_t>(p * half + j)] = static_cast<float>(std::cos(angle));
      sin.as<float>()[static_cast<std::size_t>(p * half + j)] = static_cast<float>(std::sin(angle));
    }
  }
  cos_ = Tensor::upload(backend, cos.view(), DType::kF32);
  sin_ = Tensor::upload(backend, sin.view(), DType::kF32);
  backend.sync();  // the host tables end here
}

std::string LlamaBlock::prefix(int block) const {
  return block_layout(config_).prefix + std::to_string(block);
}

BlockWeights LlamaBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                              LoadLinears linears) const {
  return load_block(config_, checkpoint, block, backend, linears);
}

void LlamaBlock::prepare(int group, const BlockWeights& weights, BlockState& state,
                         Backend& backend) const {
  require(group >= 0 && group < kGroups, "no such group of linears");
  if (group == kOut || group == kDownProjection) {
    require(
        !state.input.empty() && state.input.cols() == groups_[static_cast<std::size_t>(group)].cols,
        "the input of this group is what apply() of the group before leaves");
    return;
  }
  state.input =
      normalize(group == kQkv ? kBeforeAttention : kBeforeMlp, weights, state.residual, backend);
}

void LlamaBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                       Backend& backend) const {
  switch (group) {
    case kQkv: {
      check_sequences(state.residual, state.sequences, state.length);
      Tensor q = project(kQ, weights, state.input, backend);
      Tensor k = project(kK, weights, state.input, backend);
      const Tensor v = project(kV, weights, state.input, backend);
      state.input = Tensor();
      rotate(q, config_.heads, state.length, backend);
      rotate(k, config_.kv_heads, state.length, backend);
      state.input = attend(q, k, v, state.length, nullptr, backend);
      return;
    }
    case kOut:
      project(kO, weights, state.input, state.residual.view(), backend, true);
      state.input = Tensor();
      return;
    case kGateUp: {
      Tensor gate = project(kGate, weights, state.input, backend);
      const Tensor up = project(kUp, weights, state.input, backend);
      backend.silu_gate({.gate = std::as_const(gate).view(), .up = up.view(), .y = gate.view()});
      state.input = std::move(gate);
      return;
    }
    case kDownProjection:
      project(kDown, weights, state.input, state.residual.view(), backend, true);
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

void LlamaBlock::project(LinearIndex linear, const BlockWeights& weights, const Tensor& x, Matrix y,
                         Backend& backend, bool accumulate) const {
  const Tensor& bias = weights.biases[linear];
  backend.linear({.x = x.view(),
                  .w = weights.linears[linear].view(),
                  .bias = bias.empty() ? ConstMatrix() : bias.view(),
                  .y = y,
                  .accumulate = accumulate});
}

Tensor LlamaBlock::project(LinearIndex linear, const BlockWeights& weights, const Tensor& x,
                           Backend& backend) const {
  Tensor y(backend, backend.activation_type(), x.rows(), linears_[linear].rows);
  project(linear, weights, x, y.view(), backend);
  return y;
}

void LlamaBlock::rotate(Tensor& x, std::int64_t heads, std::int64_t length, Backend& backend,
                        bool backward) const {
  backend.rope({.x = x.view(),
                .cos = cos_.view(),
                .sin = sin_.view(),
                .heads = heads,
                .head_dim = config_.head_dim,
                .length = length,
                .backward = backward});
}

Tensor LlamaBlock::attend(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t length,
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
                     .window = config_.sliding_window,
                     .scale = attention_scale(),
                     .log_sum_exp = log_sum_exp ? log_sum_exp->view() : Matrix()});
  return out;
}

float LlamaBlock::attention_scale() const {
  return 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
}

void LlamaBlock::check_sequences(const Tensor& residual, std::int64_t sequences,
                                 std::int64_t length) const {
  require(length <= max_length_, "a sequence longer than this block was made for");
  require(residual.rows() == sequences * length, "rows are sequences times length");
}

}  // namespace roundhouse
