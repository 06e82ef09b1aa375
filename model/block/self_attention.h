// The attention of a decoder block between the input of its query, key and value linears and the input of its output linear:
// projections, norms of queries and keys and rotary embedding where the architecture has them, causal attention with grouped
// queries and a sliding window, forward and backward. Its linears are the first of every block: q, k, v, o; or, fused, qkv, o.
#pragma once

#include <optional>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/model_config.h"

namespace roundhouse {

// Cosines and sines of pair j at position p: of the angle p f_j (rotary_frequencies()), times the magnitude.
class RotaryTables {
 public:
  RotaryTables(const ModelConfig& config, std::int64_t max_length, Backend& backend);

  struct Tables {
    Tensor cos, sin;  // [positions, pairs] F32
  };
  // Of a block, with the window or without, for sequences of so many tokens.
  const Tables& of(bool windowed, std::int64_t length) const;

 private:
  struct OfRope {
    OfRope(const RopeConfig& rope, std::int64_t max_length, Backend& backend);
    Tables short_ones, long_ones;
    std::int64_t longest_short = 0;  // longer sequences take the second ones
  };
  OfRope all_;
  std::optional<OfRope> windowed_;  // none: the same
};

class SelfAttention {
 public:
  // What forward() leaves, and backward() needs. Queries and keys are rotated; fused with keys and values, queries hold them all,
  // and the others are empty. kLogSumExp and the raw ones: only if asked for, else empty.
  enum Inner { kQueries, kKeys, kValues, kOutput, kLogSumExp, kRawQueries, kRawKeys, kInner };
  enum class For { kForward, kBackward };

  // `query_norm`: where BlockWeights::norms has that of the queries, with that of the keys behind it; -1: there are none.
  // No tables: no rotation.
  SelfAttention(const ModelConfig& config, std::int64_t max_length, int query_norm,
                std::optional<RotaryTables> rotary);

  int output_linear() const { return inputs_; }
  // What forward(kBackward) saves of a token: values in the activation type, and in F32.
  std::int64_t saved_width() const;
  std::int64_t saved_f32_width() const { return heads_; }

  // x: [sequences * length, hidden]. inner[kOutput]: [sequences * length, heads * head_dim], what the output linear is applied to.
  // Precondition: length <= max_length, and rows are whole sequences.
  std::vector<Tensor> forward(const BlockWeights& weights, const Tensor& x, std::int64_t length,
                              For purpose, Backend& backend) const;

  // Of the outputs of the linears before, first to last, before norms and rotation.
  using Gradients = std::vector<Tensor>;
  // From the gradient of the output linear's output. Hands out that linear's.
  Gradients backward(const BlockWeights& weights, std::vector<Tensor> inner, const Tensor& dy,
                     std::int64_t length, const TakeGradient& take, Backend& backend) const;
  // Hands out those of the linears before, last to first, given forward()'s x.
  void take_gradients(const Gradients& gradients, const Tensor& x, std::int64_t length,
                      const TakeGradient& take) const;
  // dx (+)= the gradient of forward()'s x
  void add_input_gradients(const BlockWeights& weights, const Gradients& gradients, Matrix dx,
                           bool accumulate, Backend& backend) const;

 private:
  struct Heads {
    Matrix q, k, v;
  };
  // Of tensors as the linears leave them: three, or one with all.
  Heads heads_in(Tensor& first, Tensor& second, Tensor& third) const;
  void rotate(Matrix x, std::int64_t heads, std::int64_t block, std::int64_t length, bool backward,
              Backend& backend) const;
  // y = the norm of x, row by row or head by head, as the weights are wide.
  void normalize(const Tensor& weight, const Tensor& x, Tensor& y, Backend& backend) const;
  void normalize_backward(const Tensor& weight, const Tensor& x, Tensor& dy,
                          Backend& backend) const;

  ModelConfig config_;
  std::int64_t heads_, kv_heads_, head_dim_, max_length_;
  float scale_;
  int inputs_;  // linears: 3, or 1
  int query_norm_;
  std::optional<RotaryTables> rotary_;
};

}  // namespace roundhouse
