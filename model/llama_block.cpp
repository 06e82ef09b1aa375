#include "model/llama_block.h"

#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "model/json_file.h"
#include "model/weights.h"

namespace roundhouse {
namespace {

enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };
enum GroupIndex { kQkv, kOut, kGateUp, kDownProjection, kGroups };
constexpr std::array<const char*, 2> kNorms = {"input_layernorm", "post_attention_layernorm"};

std::string prefix_of(int block) { return "model.layers." + std::to_string(block); }

std::vector<LinearSpec> linears_of(const ModelConfig& c) {
  const std::int64_t q = c.heads * c.head_dim;
  const std::int64_t kv = c.kv_heads * c.head_dim;
  return {{"self_attn.q_proj", q, c.hidden_size},
          {"self_attn.k_proj", kv, c.hidden_size},
          {"self_attn.v_proj", kv, c.hidden_size},
          {"self_attn.o_proj", c.hidden_size, q},
          {"mlp.gate_proj", c.intermediate_size, c.hidden_size},
          {"mlp.up_proj", c.intermediate_size, c.hidden_size},
          {"mlp.down_proj", c.hidden_size, c.intermediate_size}};
}

std::string weight_name(int block, const std::string& module) {
  return prefix_of(block) + "." + module + ".weight";
}

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend)
    : config_(config), max_length_(max_length) {
  require(max_length > 0, "a block for sequences without a token");
  hidden_size_ = config.hidden_size;
  linears_ = linears_of(config);
  const std::int64_t attention = config.heads * config.head_dim;
  groups_ = {{"q_proj, k_proj, v_proj", {kQ, kK, kV}, config.hidden_size, true},
             {"o_proj", {kO}, attention, false},
             {"gate_proj, up_proj", {kGate, kUp}, config.hidden_size, true},
             {"down_proj", {kDown}, config.intermediate_size, false}};
  for (const char* norm : kNorms) norm_names_.push_back(std::string(norm) + ".weight");
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

std::string LlamaBlock::prefix(int block) const { return prefix_of(block); }

BlockWeights LlamaBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                              LoadLinears linears) const {
  BlockWeights weights;
  if (linears == LoadLinears::kNo) weights.linears.resize(linears_.size());
  for (const LinearSpec& linear : linears_) {
    if (linears == LoadLinears::kNo) break;
    weights.linears.push_back(load_weight(checkpoint, weight_name(block, linear.name),
                                          {linear.rows, linear.cols}, backend));
  }
  weights.biases.resize(linears_.size());
  for (const char* norm : kNorms) {
    weights.norms.push_back(
        load_weight(checkpoint, weight_name(block, norm), {hidden_size_}, backend));
  }
  backend.sync();
  return weights;
}

void LlamaBlock::check(const ModelConfig& config, const Checkpoint& checkpoint, int block) {
  for (const LinearSpec& linear : linears_of(config)) {
    (void)checkpoint.weight(weight_name(block, linear.name), {linear.rows, linear.cols});
    const std::string bias = prefix_of(block) + "." + linear.name + ".bias";
    if (checkpoint.has(bias)) {
      throw InputError(checkpoint.directory().string() + ": tensor " + in_quotes(bias) +
                       ": biases are not supported");
    }
  }
  for (const char* norm : kNorms)
    (void)checkpoint.weight(weight_name(block, norm), {config.hidden_size});
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
  state.input = Tensor(backend, backend.activation_type(), state.residual.rows(), hidden_size_);
  backend.rms_norm({.x = std::as_const(state.residual).view(),
                    .weight = weights.norms[group == kQkv ? 0 : 1].view(),
                    .y = state.input.view(),
                    .epsilon = config_.norm_epsilon});
}

void LlamaBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                       Backend& backend) const {
  const auto linear = [&](LinearIndex index, const Tensor& x, Matrix y, bool accumulate = false) {
    const Tensor& bias = weights.biases[index];
    backend.linear({.x = x.view(),
                    .w = weights.linears[index].view(),
                    .bias = bias.empty() ? ConstMatrix() : bias.view(),
                    .y = y,
                    .accumulate = accumulate});
  };
  switch (group) {
    case kQkv:
      attend(weights, state, backend);
      return;
    case kOut:
      linear(kO, state.input, state.residual.view(), true);
      state.input = Tensor();
      return;
    case kGateUp: {
      const DType type = backend.activation_type();
      Tensor gate(backend, type, state.input.rows(), config_.intermediate_size);
      Tensor up(backend, type, state.input.rows(), config_.intermediate_size);
      linear(kGate, state.input, gate.view());
      linear(kUp, state.input, up.view());
      backend.silu_gate(
          {.gate = std::as_const(gate).view(), .up = std::as_const(up).view(), .y = gate.view()});
      state.input = std::move(gate);
      return;
    }
    case kDownProjection:
      linear(kDown, state.input, state.residual.view(), true);
      state.input = Tensor();
      return;
    default:
      require(false, "no such group of linears");
  }
}

// Queries, keys and values of state.input, rotated, and the attention between them, which becomes
// state.input.
void LlamaBlock::attend(const BlockWeights& weights, BlockState& state, Backend& backend) const {
  require(state.length <= max_length_, "a sequence longer than this block was made for");
  require(state.residual.rows() == state.sequences * state.length,
          "rows are sequences times length");
  const auto project = [&](LinearIndex index) {
    Tensor y(backend, backend.activation_type(), state.input.rows(), linears_[index].rows);
    const Tensor& bias = weights.biases[index];
    backend.linear({.x = std::as_const(state.input).view(),
                    .w = weights.linears[index].view(),
                    .bias = bias.empty() ? ConstMatrix() : bias.view(),
                    .y = y.view()});
    return y;
  };
  Tensor q = project(kQ);
  Tensor k = project(kK);
  const Tensor v = project(kV);
  state.input = Tensor();

  const auto rotate = [&](Tensor& x, std::int64_t heads) {
    backend.rope({.x = x.view(),
                  .cos = std::as_const(cos_).view(),
                  .sin = std::as_const(sin_).view(),
                  .heads = heads,
                  .head_dim = config_.head_dim,
                  .length = state.length});
  };
  rotate(q, config_.heads);
  rotate(k, config_.kv_heads);

  Tensor out(backend, backend.activation_type(), q.rows(), q.cols());
  backend.attention({.q = std::as_const(q).view(),
                     .k = std::as_const(k).view(),
                     .v = v.view(),
                     .out = out.view(),
                     .heads = config_.heads,
                     .kv_heads = config_.kv_heads,
                     .head_dim = config_.head_dim,
                     .length = state.length,
                     .window = config_.sliding_window,
                     .scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim))});
  state.input = std::move(out);
}

}  // namespace roundhouse
