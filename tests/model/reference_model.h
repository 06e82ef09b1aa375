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

inline Matrix llama_block(const ModelConfig& config, const Weights& weights,
                          const std::string& prefix, std::int64_t length, const Matrix& input) {
  const std::int64_t half = config.head_dim / 2;
  Matrix cos(length, half), sin(length, half);
  for (std::int64_t p = 0; p < length; ++p) {
    for (std::int64_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) *
                           std::pow(config.rope_theta, -2.0 * static_cast<double>(j) /
                                                           static_cast<double>(config.head_dim));
      cos(p, j) = std::cos(angle);
      sin(p, j) = std::sin(angle);
    }
  }
  const auto epsilon = static_cast<double>(config.norm_epsilon);
  const auto weight = [&](const char* name) -> const Matrix& {
    return weights.at(prefix + name + ".weight");
  };
  const auto linear = [&](const Matrix& in, const char* name) {
    return product(in, reference::transpose(weight(name)));
  };
  const Matrix n = rms_norm(input, weight("input_layernorm"), epsilon);
  const Matrix q = rope(linear(n, "self_attn.q_proj"), cos, sin, config.heads, length);
  const Matrix k = rope(linear(n, "self_attn.k_proj"), cos, sin, config.kv_heads, length);
  const Matrix mixed =
      attention(q, k, linear(n, "self_attn.v_proj"), config.heads, config.kv_heads, length,
                config.sliding_window, 1.0 / std::sqrt(static_cast<double>(config.head_dim)));
  const Matrix middle = plus(input, linear(mixed, "self_attn.o_proj"));
  const Matrix m = rms_norm(middle, weight("post_attention_layernorm"), epsilon);
  const Matrix gated = silu_gate(linear(m, "mlp.gate_proj"), linear(m, "mlp.up_proj"));
  return plus(middle, linear(gated, "mlp.down_proj"));
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
                   ? rms_norm(residual, weight, epsilon)
                   : layer_norm(residual, weight, weights.at(outer.norm_bias), epsilon);
  }
  if (!outer.project_out.empty()) {
    residual = product(residual, reference::transpose(weights.at(outer.project_out)));
  }
  std::vector<std::int32_t> target(ids.begin() + 1, ids.end());
  target.push_back(-1);
  double sum = 0.0;
  for (const double loss :
       cross_entropy(product(residual, reference::transpose(weights.at(outer.head))), target)) {
    sum += loss;
  }
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
    for (std::int64_t j = 0; j < x.cols; ++j) x(i, j) = table(ids[static_cast<std::size_t>(i)], j);
  }
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
