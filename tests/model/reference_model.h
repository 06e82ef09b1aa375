// A whole model in double precision, plainly: what gradients are compared with, by difference quotients.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "model/architectures/tensor_names.h"
#include "model/model_config.h"
#include "tests/model/model_files.h"
#include "tests/reference/reference.h"

namespace roundhouse::reference {

using Weights = std::map<std::string, Matrix>;  // by tensor; norms and biases are one row

inline Weights weights_of(const Tensors& tensors) {
  Weights weights;
  for (const auto& [name, tensor] : tensors) {
    const auto& shape = tensor.shape();
    Matrix m(shape.size() == 1 ? 1 : shape[0], shape.back());
    std::vector<float> values(m.values.size());
    convert(tensor.type(), tensor.bytes().data(), DType::kF32, values.data(), values.size());
    m.values.assign(values.begin(), values.end());
    weights.emplace(name, std::move(m));
  }
  return weights;
}

// A matrix of one row is added to all.
inline Matrix plus(Matrix a, const Matrix& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    a.values[i] += b.values[b.rows == 1 ? i % b.values.size() : i];
  }
  return a;
}

inline Matrix columns(const Matrix& m, std::int64_t begin, std::int64_t end) {
  Matrix part(m.rows, end - begin);
  for (std::int64_t i = 0; i < m.rows; ++i) {
    for (std::int64_t j = begin; j < end; ++j) part(i, j - begin) = m(i, j);
  }
  return part;
}

inline Matrix times(Matrix m, double factor) {
  for (double& value : m.values) value *= factor;
  return m;
}

// Frequencies come from rotary_frequencies(), which the golden logits check.
inline Matrix llama_block(const ModelConfig& config, const Weights& weights,
                          const std::string& prefix, std::int64_t length, const Matrix& input) {
  const RopeConfig& turn =
      config.window_rope && config.has_window(0) ? *config.window_rope : config.rope;
  const std::vector<double> frequencies = rotary_frequencies(turn, length);
  Matrix cos(length, std::ssize(frequencies)), sin(length, std::ssize(frequencies));
  for (std::int64_t p = 0; p < length; ++p) {
    for (std::int64_t j = 0; j < cos.cols; ++j) {
      const double angle = static_cast<double>(p) * frequencies[j];
      cos(p, j) = turn.magnitude * std::cos(angle);
      sin(p, j) = turn.magnitude * std::sin(angle);
    }
  }
  const auto epsilon = static_cast<double>(config.norm_epsilon);
  const auto linear = [&](const Matrix& in, const std::string& name) {
    const Matrix y = product(in, reference::transpose(weights.at(prefix + name + ".weight")));
    const auto bias = weights.find(prefix + name + ".bias");
    return bias == weights.end() ? y : plus(y, bias->second);
  };
  const auto norm = [&](const Matrix& x, const std::string& name) {
    return rms_norm(x, weights.at(prefix + name + ".weight"), epsilon,
                    static_cast<double>(config.norm_offset));
  };
  const std::int64_t q_width = config.heads * config.head_dim,
                     kv_width = config.kv_heads * config.head_dim;
  // Norms of heads are those of the rows that the heads make.
  const auto head_norm = [&](Matrix x, const std::string& name) {
    if (config.query_key_norm == QueryKeyNorm::kNone) return x;
    const std::int64_t rows = x.rows, cols = x.cols;
    if (config.query_key_norm == QueryKeyNorm::kHeads) {
      x.rows = rows * cols / config.head_dim;
      x.cols = config.head_dim;
    }
    x = norm(x, name);
    x.rows = rows;
    x.cols = cols;
    return x;
  };
  // The product of columns that are not rotated is what it was.
  const auto rotated = [&](const Matrix& x, std::int64_t heads) {
    if (2 * cos.cols == config.head_dim) return rope(x, cos, sin, heads, length);
    Matrix result = x;
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t first = head * config.head_dim;
      const Matrix part = rope(columns(x, first, first + 2 * cos.cols), cos, sin, 1, length);
      for (std::int64_t i = 0; i < x.rows; ++i) {
        for (std::int64_t j = 0; j < part.cols; ++j) result(i, first + j) = part(i, j);
      }
    }
    return result;
  };
  const Matrix n = config.norms_of_inputs ? norm(input, "input_layernorm") : input;
  Matrix q, k, v;
  if (config.fused_linears) {
    const Matrix qkv = linear(n, "self_attn.qkv_proj");
    q = columns(qkv, 0, q_width);
    k = columns(qkv, q_width, q_width + kv_width);
    v = columns(qkv, q_width + kv_width, q_width + 2 * kv_width);
  } else {
    q = linear(n, "self_attn.q_proj");
    k = linear(n, "self_attn.k_proj");
    v = linear(n, "self_attn.v_proj");
  }
  const double scale = config.attention_scale > 0.0f
                           ? static_cast<double>(config.attention_scale)
                           : 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  const Matrix mixed = attention(rotated(head_norm(q, "self_attn.q_norm"), config.heads),
                                 rotated(head_norm(k, "self_attn.k_norm"), config.kv_heads), v,
                                 config.heads, config.kv_heads, length, config.window_of(0), scale,
                                 static_cast<double>(config.score_cap));
  const auto added = [&](const Matrix& y, const char* norm_of_output) {
    return times(config.norms_of_outputs ? norm(y, norm_of_output) : y,
                 static_cast<double>(config.residual_multiplier));
  };
  const Matrix middle =
      plus(input, added(linear(mixed, "self_attn.o_proj"), "post_attention_layernorm"));
  const Matrix m = !config.norms_of_inputs   ? middle
                   : config.norms_of_outputs ? norm(middle, "pre_feedforward_layernorm")
                                             : norm(middle, "post_attention_layernorm");
  Matrix gate, up;
  if (config.fused_linears) {
    const Matrix both = linear(m, "mlp.gate_up_proj");
    gate = columns(both, 0, config.intermediate_size);
    up = columns(both, config.intermediate_size, 2 * config.intermediate_size);
  } else {
    gate = linear(m, "mlp.gate_proj");
    up = linear(m, "mlp.up_proj");
  }
  return plus(middle, added(linear(gated_product(gate, up, config.gate), "mlp.down_proj"),
                            "post_feedforward_layernorm"));
}

inline Matrix opt_block(const ModelConfig& config, const Weights& weights,
                        const std::string& prefix, std::int64_t length, const Matrix& input) {
  const auto linear = [&](const Matrix& in, const std::string& name) {
    return plus(product(in, reference::transpose(weights.at(prefix + name + ".weight"))),
                weights.at(prefix + name + ".bias"));
  };
  const auto normalize = [&](const Matrix& x, const std::string& name) {
    return layer_norm(x, weights.at(prefix + name + ".weight"), weights.at(prefix + name + ".bias"),
                      1e-5);
  };
  const auto half = [&](const Matrix& x, const std::string& norm, const auto& function) {
    return config.norm_first ? plus(x, function(normalize(x, norm)))
                             : normalize(plus(x, function(x)), norm);
  };
  const Matrix middle = half(input, "self_attn_layer_norm", [&](const Matrix& n) {
    return linear(attention(linear(n, "self_attn.q_proj"), linear(n, "self_attn.k_proj"),
                            linear(n, "self_attn.v_proj"), config.heads, config.heads, length, 0,
                            1.0 / std::sqrt(static_cast<double>(config.head_dim))),
                  "self_attn.out_proj");
  });
  return half(middle, "final_layer_norm",
              [&](const Matrix& m) { return linear(relu(linear(m, "fc1")), "fc2"); });
}

inline Matrix decoder_block(const ModelConfig& config, const Weights& weights,
                            const std::string& prefix, std::int64_t length, const Matrix& input) {
  return (config.architecture == Architecture::kOpt ? opt_block : llama_block)(
      config, weights, prefix, length, input);
}

// Of one sequence whose residual after the last block this is: the mean cross-entropy of its tokens but the first.
inline double mean_cross_entropy(const ModelConfig& config, const Weights& weights, Matrix residual,
                                 const std::vector<std::int32_t>& ids) {
  const OuterLayout outer = outer_layout(config);
  if (!outer.norm.empty()) {
    const Matrix& weight = weights.at(outer.norm);
    const auto epsilon = static_cast<double>(config.norm_epsilon);
    residual = outer.norm_bias.empty()
                   ? rms_norm(residual, weight, epsilon, static_cast<double>(config.norm_offset))
                   : layer_norm(residual, weight, weights.at(outer.norm_bias), epsilon);
  }
  if (!outer.project_out.empty()) {
    residual = product(residual, reference::transpose(weights.at(outer.project_out)));
  }
  residual = times(std::move(residual), 1.0 / static_cast<double>(config.logits_divisor));
  std::vector<std::int32_t> target(ids.begin() + 1, ids.end());
  target.push_back(-1);
  Matrix logits = product(residual, reference::transpose(weights.at(outer.head)));
  if (config.logit_cap > 0.0f) logits = soft_cap(logits, static_cast<double>(config.logit_cap));
  double sum = 0.0;
  for (const double loss : cross_entropy(logits, target)) sum += loss;
  return sum / static_cast<double>(ids.size() - 1);
}

// Of one sequence, from its ids on.
inline double model_loss(const ModelConfig& config, const Weights& weights,
                         const std::vector<std::int32_t>& ids) {
  const OuterLayout outer = outer_layout(config);
  const auto length = static_cast<std::int64_t>(ids.size());
  const Matrix& table = weights.at(outer.embedding);
  Matrix x(length, table.cols);
  for (std::int64_t i = 0; i < length; ++i) {
    for (std::int64_t j = 0; j < x.cols; ++j) x(i, j) = table(ids[i], j);
  }
  x = times(std::move(x), static_cast<double>(config.embedding_multiplier));
  if (!outer.project_in.empty()) {
    x = product(x, reference::transpose(weights.at(outer.project_in)));
  }
  if (!outer.positions.empty()) {
    const Matrix& positions = weights.at(outer.positions);
    for (std::int64_t i = 0; i < length; ++i) {
      for (std::int64_t j = 0; j < x.cols; ++j) x(i, j) += positions(outer.position_offset + i, j);
    }
  }
  for (std::int64_t block = 0; block < config.blocks; ++block) {
    const std::string prefix = block_layout(config).prefix + std::to_string(block) + ".";
    x = decoder_block(config, weights, prefix, length, x);
  }
  return mean_cross_entropy(config, weights, std::move(x), ids);
}

}  // namespace roundhouse::reference
