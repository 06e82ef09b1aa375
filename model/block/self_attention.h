// The attention of a decoder block between the input of its query, key and value linears and the input of its output linear:
// projections, rotary embedding where the architecture has one, causal attention with grouped queries and a sliding window,
// forward and backward. Its linears are the first four of every block: q, k, v, o.
#pragma once

#include <optional>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/model_config.h"

namespace roundhouse {

// Rotations of pair j at position p by the angle p theta^(-2 j / head_dim) (Su et al. 2021, "RoFormer").
struct RotaryTables {
  RotaryTables(double theta, std::int64_t head_dim, std::int64_t max_length, Backend& backend);
  Tensor cos, sin;  // [max_length, head_dim / 2] F32
};

class SelfAttention {
 public:
  enum Linear { kQ, kK, kV, kO };
  // What forward() leaves, and backward() needs. kLogSumExp: only if asked for.
  enum Inner { kQueries, kKeys, kValues, kOutput, kLogSumExp };  // queries and keys rotated
  enum class LogSumExp { kYes, kNo };

  // Heads and window of the config; no tables: no rotation.
  SelfAttention(const ModelConfig& config, std::int64_t max_length,
                std::optional<RotaryTables> rotary);

  // x: [sequences * length, hidden]. inner[kOutput]: [sequences * length, heads * head_dim], what kO is applied to.
  // Precondition: length <= max_length, and rows are whole sequences.
  std::vector<Tensor> forward(const BlockWeights& weights, const Tensor& x, std::int64_t length,
                              LogSumExp log_sum_exp, Backend& backend) const;

  // Of the outputs of q, k and v, before the rotation.
  struct Gradients {
    Tensor dq, dk, dv;
  };
  // From the gradient of kO's output. Hands out kO's.
  Gradients backward(const BlockWeights& weights, std::vector<Tensor> inner, const Tensor& dy,
                     std::int64_t length, const TakeGradient& take, Backend& backend) const;
  // Hands out those of v, k and q, given forward()'s x.
  void take_gradients(const Gradients& gradients, const Tensor& x, std::int64_t length,
                      const TakeGradient& take) const;
  // dx (+)= the gradient of forward()'s x
  void add_input_gradients(const BlockWeights& weights, const Gradients& gradients, Matrix dx,
                           bool accumulate, Backend& backend) const;

 private:
  void rotate(Tensor& x, std::int64_t heads, std::int64_t length, bool backward,
              Backend& backend) const;
  float scale() const;

  std::int64_t heads_, kv_heads_, head_dim_, window_, max_length_;
  std::optional<RotaryTables> rotary_;
};

}  // namespace roundhouse
