// The operations of a decoder block besides its matrix products, forward.
//
// A batch of token positions is a matrix with one row a token: `sequences` sequences of `length` tokens, one after
// another. Positions restart at 0 in each sequence. Heads lie side by side in a row: head h is columns
// [h * head_dim, (h + 1) * head_dim).
#pragma once

#include <cstdint>
#include <span>

#include "kernels/memory.h"

namespace roundhouse {

// y = x / sqrt(mean(x²) + epsilon) * (offset + weight), by row; mean in F32. A row of zeros gives zeros.
struct RmsNorm {
  ConstMatrix x;
  ConstMatrix weight;  // [1, cols]
  Matrix y;            // may be x itself
  float epsilon;
  float offset = 0.0f;  // 1 where weights are stored as what they differ from 1 by (Gemma)
};

// y = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias, by row; the variance is the biased one, mean((x - mean)²),
// as in Ba, Kiros, Hinton 2016, "Layer Normalization". Both are summed in two passes: no difference of large squares.
struct LayerNorm {
  ConstMatrix x;
  ConstMatrix weight;  // [1, cols]
  ConstMatrix bias;    // [1, cols]
  Matrix y;            // may be x itself
  float epsilon;
};

// Rotary position embedding in place, Hugging Face's "rotate half" layout: with a, b the halves of a head, or of its first
// columns, (a, b) <- (a cos - b sin, b cos + a sin). Backward: by minus the angle, which takes dL/dy to dL/dx.
struct Rope {
  Matrix x;         // [sequences * length, heads * head_dim]
  ConstMatrix cos;  // [>= length, rotated columns of a head / 2] F32
  ConstMatrix sin;
  std::int64_t heads;
  std::int64_t head_dim;
  std::int64_t length;
  bool backward = false;
};

// Causal softmax attention with grouped queries: query head h reads key/value head h / (heads / kv_heads).
// Token i of a sequence sees tokens j with j <= i and, if window > 0, j > i - window. Its scores are s = scale q kᵀ, or, with a cap c
// (Gemma 2), c tanh(s / c).
// Never holds a full length x length matrix of scores.
struct Attention {
  ConstMatrix q;  // [sequences * length, heads * head_dim]
  ConstMatrix k;  // [sequences * length, kv_heads * head_dim]
  ConstMatrix v;
  Matrix out;  // like q
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t length;
  std::int64_t window;  // 0: all earlier tokens
  float scale;          // 1 / sqrt(head_dim)
  // [tokens, heads] F32 or empty: log(sum_j exp(score)), what the backward pass starts from.
  Matrix log_sum_exp = {};
  float score_cap = 0.0f;  // 0: none
};

// f(x) = x / (1 + exp(-a)), with
enum class GateFunction {
  kSilu,     // a = x
  kGeluTanh  // a = 2 sqrt(2 / pi) (x + 0.044715 x³): GELU, its error function by a tanh (Hendrycks, Gimpel 2016)
};

// y = f(gate) * up
struct GatedProduct {
  ConstMatrix gate;
  ConstMatrix up;
  Matrix y;  // may be gate or up
  GateFunction function = GateFunction::kSilu;
};

// y (+)= scale x
struct ScaledSum {
  ConstMatrix x;
  float scale = 1.0f;
  Matrix y;  // may be x itself
  bool accumulate = true;
};

// y = cap tanh(x / cap)
struct SoftCap {
  ConstMatrix x;  // F32
  Matrix y;       // may be x itself
  float cap;
};

// y = max(x, 0); NaN stays NaN.
struct Relu {
  ConstMatrix x;
  Matrix y;  // may be x itself
};

// loss[t] = log(sum_v exp(logits[t, v])) - logits[t, target[t]], in nats; 0 where target[t] < 0 (not scored).
struct CrossEntropy {
  ConstMatrix logits;                    // [t, vocabulary]
  std::span<const std::int32_t> target;  // host memory
  std::span<float> loss;                 // host memory
  // Host memory, or empty: not asked for. The column of each row's largest logit, the first of equal ones; -1 for rows that are not scored.
  std::span<std::int32_t> largest = {};
};

// How far a distribution q over the next token is from another one, p.
struct Divergence {
  double nats = 0;            // sum p ln(p / q), Kullback and Leibler's
  std::int64_t same_top = 0;  // 1: both have the same likeliest token (the first of equal ones)
};

// Of each row, with p = softmax(reference) and q = softmax(logits); Not finite where a logit is not. Exponentials in F32, sums in
// double, in an order that depends on the vocabulary alone.
struct CompareLogits {
  ConstMatrix reference;              // [t, vocabulary] F32
  ConstMatrix logits;                 // likewise
  std::span<Divergence> divergences;  // [t], host memory
};

// finite[s] = 1 if every value of rows [s * rows_each, (s + 1) * rows_each) is finite, else 0.
struct CheckFinite {
  ConstMatrix x;
  std::int64_t rows_each;
  std::span<std::uint8_t> finite;  // host memory
};

class TransformerKernels {
 public:
  virtual ~TransformerKernels() = default;
  void rms_norm(const RmsNorm& op);
  void layer_norm(const LayerNorm& op);
  void rope(const Rope& op);
  void attention(const Attention& op);
  void gated_product(const GatedProduct& op);
  void scaled_sum(const ScaledSum& op);
  void soft_cap(const SoftCap& op);
  void relu(const Relu& op);
  void cross_entropy(const CrossEntropy& op);
  void compare_logits(const CompareLogits& op);
  void check_finite(const CheckFinite& op);

 private:
  virtual void run(const RmsNorm& op) = 0;
  virtual void run(const LayerNorm& op) = 0;
  virtual void run(const Rope& op) = 0;
  virtual void run(const Attention& op) = 0;
  virtual void run(const GatedProduct& op) = 0;
  virtual void run(const ScaledSum& op) = 0;
  virtual void run(const SoftCap& op) = 0;
  virtual void run(const Relu& op) = 0;
  virtual void run(const CrossEntropy& op) = 0;
  virtual void run(const CompareLogits& op) = 0;
  virtual void run(const CheckFinite& op) = 0;
};

}  // namespace roundhouse
