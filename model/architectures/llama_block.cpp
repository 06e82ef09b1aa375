#include "model/architectures/llama_block.h"

#include <utility>

#include "base/error.h"
#include "model/architectures/tensor_names.h"
#include "model/block/linear.h"

namespace roundhouse {
namespace {

enum GroupIndex { kQkv, kOut, kGateUp, kDown };

// Behind the norms of both halves; -1: there are none.
int first_query_norm(const ModelConfig& config) {
  return config.query_key_norm == QueryKeyNorm::kNone
             ? -1
             : 2 * (int{config.norms_of_inputs} + int{config.norms_of_outputs});
}

// "q_proj, k_proj, v_proj" of linears [first, end).
SharedInput group_of(const std::vector<LinearSpec>& linears, int first, int end,
                     bool from_residual) {
  SharedInput group{
      .name = "", .linears = {}, .cols = linears[first].cols, .from_residual = from_residual};
  for (int i = first; i < end; ++i) {
    const std::string& name = linears[i].name;
    group.name += (i > first ? ", " : "") + name.substr(name.rfind('.') + 1);
    group.linears.push_back(i);
  }
  return group;
}

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend)
    : config_(config),
      attention_(config, max_length, first_query_norm(config),
                 RotaryTables(config, max_length, backend)),
      o_(attention_.output_linear()),
      gate_(o_ + 1),
      up_(config.fused_linears ? gate_ : gate_ + 1),
      down_(up_ + 1) {
  int norms = 0;
  for (HalfNorms* half : {&attention_norms_, &mlp_norms_}) {
    if (config.norms_of_inputs) half->input = norms++;
    if (config.norms_of_outputs) half->output = norms++;
  }
  hidden_size_ = config.hidden_size;
  const BlockLayout layout = block_layout(config);
  prefix_ = layout.prefix;
  linears_ = layout.linears;
  norms_ = layout.norms;
  shared_inputs_ = {group_of(linears_, 0, o_, true), group_of(linears_, o_, gate_, false),
                    group_of(linears_, gate_, down_, true),
                    group_of(linears_, down_, down_ + 1, false)};
  if (config.norms_of_inputs) {
    scale_sets_.push_back({.group = kQkv, .last_group = kOut, .norms = {attention_norms_.input}});
  }
  // With grouped queries several columns of o read one row of v. Values are the last of the linears before o, or its last rows.
  if (config.kv_heads == config.heads) {
    scale_sets_.push_back({.group = kOut, .last_group = kOut, .norms = {}, .linear = o_ - 1});
  }
  if (config.norms_of_inputs) {
    scale_sets_.push_back({.group = kGateUp, .last_group = kDown, .norms = {mlp_norms_.input}});
  }
  scale_sets_.push_back({.group = kDown, .last_group = kDown, .norms = {}, .linear = up_});
  score_linears_ = {0};
  if (!config.fused_linears) score_linears_.push_back(1);
  saved_width_ = (config.norms_of_outputs ? 4 : 2) * hidden_size_ + attention_.saved_width() +
                 2 * config.intermediate_size;
  saved_f32_width_ = attention_.saved_f32_width();
}

BlockWeights LlamaBlock::load(const Checkpoint& checkpoint, int block, Backend& backend,
                              LoadLinears linears) const {
  return load_block(config_, checkpoint, block, backend, linears);
}

Tensor LlamaBlock::input_from_residual(int group, const BlockWeights& weights,
                                       const Tensor& residual, Backend& backend) const {
  return input_of(group == kQkv ? Half::kAttention : Half::kMlp, weights, residual, backend);
}

void LlamaBlock::apply(int group, const BlockWeights& weights, BlockState& state,
                       Backend& backend) const {
  const Tensor x = std::move(state.input);
  state.input = Tensor();
  switch (group) {
    case kQkv:
      state.input = std::move(attention_.forward(
          weights, x, state.length, SelfAttention::For::kForward, backend)[SelfAttention::kOutput]);
      return;
    case kGateUp: {
      std::vector<Tensor> outputs = gate_and_up(weights, x, backend);
      if (config_.fused_linears) {
        state.input = gated_product(parts_of(outputs), backend);
      } else {
        const GateUp parts = parts_of(outputs);
        backend.gated_product(
            {.gate = parts.gate, .up = parts.up, .y = parts.gate, .function = config_.gate});
        state.input = std::move(outputs.front());
      }
      return;
    }
    case kOut:
    case kDown:
      add_output(group == kOut ? Half::kAttention : Half::kMlp, weights, x, false, state.residual,
                 backend);
      return;
    default:
      require(false, "no such group of linears");
  }
}

std::vector<Tensor> LlamaBlock::gate_and_up(const BlockWeights& weights, const Tensor& n,
                                            Backend& backend) const {
  std::vector<Tensor> outputs;
  for (int linear = gate_; linear <= up_; ++linear) {
    outputs.push_back(apply_linear(weights, linear, n, backend));
  }
  return outputs;
}

LlamaBlock::GateUp LlamaBlock::parts_of(std::vector<Tensor>& gate_and_up) const {
  if (!config_.fused_linears) {
    return {gate_and_up[kGateOutput].view(), gate_and_up[kUpOutput].view()};
  }
  const Matrix both = gate_and_up[kGateOutput].view();
  const std::int64_t each = config_.intermediate_size;
  return {both.col_range(0, each), both.col_range(each, 2 * each)};
}

Tensor LlamaBlock::gated_product(const GateUp& parts, Backend& backend) const {
  Tensor product(backend, parts.gate.type, parts.gate.rows, parts.gate.cols);
  backend.gated_product(
      {.gate = parts.gate, .up = parts.up, .y = product.view(), .function = config_.gate});
  return product;
}

Tensor LlamaBlock::input_of(Half half, const BlockWeights& weights, const Tensor& residual,
                            Backend& backend) const {
  Tensor y(backend, backend.activation_type(), residual.rows(), hidden_size_);
  if (config_.norms_of_inputs) {
    normalize(norms_of(half).input, weights, residual, y.view(), backend);
  } else {
    backend.copy(residual.view(), y.view());
  }
  return y;
}

void LlamaBlock::normalize(int norm, const BlockWeights& weights, const Tensor& x, Matrix y,
                           Backend& backend) const {
  backend.rms_norm({.x = x.view(),
                    .weight = weights.norms[norm].view(),
                    .y = y,
                    .epsilon = config_.norm_epsilon,
                    .offset = config_.norm_offset});
}

Tensor LlamaBlock::add_output(Half half, const BlockWeights& weights, const Tensor& x, bool keep,
                              Tensor& residual, Backend& backend) const {
  const int linear = half == Half::kAttention ? o_ : down_;
  if (!config_.norms_of_outputs && config_.residual_multiplier == 1.0f) {
    apply_linear(weights, linear, x, residual.view(), true, backend);
    return {};
  }
  Tensor y = apply_linear(weights, linear, x, backend), raw;
  if (config_.norms_of_outputs) {
    if (keep) {
      raw = std::move(y);
      y = Tensor(backend, raw.type(), raw.rows(), raw.cols());
    }
    normalize(norms_of(half).output, weights, keep ? raw : y, y.view(), backend);
  }
  backend.scaled_sum(
      {.x = std::as_const(y).view(), .scale = config_.residual_multiplier, .y = residual.view()});
  return raw;
}

}  // namespace roundhouse
