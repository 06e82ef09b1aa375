// Backward passes of a decoder block's operations, and of the loss that a model ends in: from dy = dL/dy the gradient dx = dL/dx of each input, L any scalar.
// Weights of norms get no gradient: nothing here learns them. A linear y = x wᵀ needs no kernel of its own; with matmul:
//   dx (+)= dy w,   dw (+)= dyᵀ x.
// RoPE is a rotation: its backward is the rotation back (Rope::backward). All matrices have the device's activation type
// unless said otherwise; sums within a row are in F32 or better, and have the same bits for any number of threads.
#pragma once

#include <cstdint>

#include "kernels/memory.h"
#include "kernels/transformer.h"

namespace roundhouse {

// Of RmsNorm: with r = 1 / sqrt(mean(x²) + epsilon) and g = dy * (offset + weight),  dx = r g - x r³ mean(g x).
struct RmsNormBackward {
  ConstMatrix x;
  ConstMatrix weight;  // [1, cols]
  ConstMatrix dy;
  Matrix dx;  // may be dy, if it is not accumulated
  float epsilon;
  bool accumulate = false;  // dx += ..., for the gradient that passes the norm by
  float offset = 0.0f;
};

// Of LayerNorm, y = (x - mean) r weight + bias: with h = (x - mean) r and g = dy * weight,
// dx = r (g - mean(g) - h mean(g h)).
struct LayerNormBackward {
  ConstMatrix x;
  ConstMatrix weight;  // [1, cols]
  ConstMatrix dy;
  Matrix dx;  // may be dy, if it is not accumulated
  float epsilon;
  bool accumulate = false;
};

// Of Attention, block by block from the scores' logarithmic sums (Dao et al. 2022, algorithm 4), never a full
// length x length matrix: with P = exp(score - log_sum_exp), D = rows' sums of d_out * out,
//   dv = Pᵀ d_out,   dS = P * (d_out vᵀ - D) scale,   dq = dS k,   dk = dSᵀ q;
// where scores are capped, dS is multiplied with the slope of the cap, 1 - (score / cap)².
//
// dk and dv of a key/value head are the sums over its query heads, in their order.
struct AttentionBackward {
  ConstMatrix q;  // as Attention had them
  ConstMatrix k;
  ConstMatrix v;
  ConstMatrix out;          // what it made of them
  ConstMatrix log_sum_exp;  // [tokens, heads] F32, likewise
  ConstMatrix d_out;        // like out
  Matrix dq;                // like q
  Matrix dk;
  Matrix dv;
  std::int64_t heads;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::int64_t length;
  std::int64_t window;
  float scale;
  float score_cap = 0.0f;
};

// Of GatedProduct: with s = 1 / (1 + exp(-a)),  d_up = dy gate s,  d_gate = dy up s (1 + gate (1 - s) da/dgate).
struct GatedProductBackward {
  ConstMatrix gate;
  ConstMatrix up;
  ConstMatrix dy;
  Matrix d_gate;  // may be gate, up or dy, as may d_up, but not the same
  Matrix d_up;
  GateFunction function = GateFunction::kSilu;
};

// Of Relu, from its output: dx = dy where y > 0, else 0.
struct ReluBackward {
  ConstMatrix y;
  ConstMatrix dy;
  Matrix dx;  // may be y or dy
};

// The sum of (y - target)² over all elements, and dy = scale (y - target). With scale = 2 / elements that is the gradient
// of the mean squared error. Each row is summed by itself, rows are added in order in double.
struct SquaredError {
  ConstMatrix y;
  ConstMatrix target;
  Matrix dy;  // may be y
  float scale;
};

// log(sum_v exp(x[t, v])) of each row: of logits whose columns come in ranges, a range a call.
struct LogSumExp {
  ConstMatrix x;            // [t, c] F32
  Matrix sums;              // [t, 1] F32
  bool accumulate = false;  // sums = log(exp(sums) + ...)
};

// The softmax of a whole vocabulary and its cross-entropy, of whose columns these are [first, first + c):
//   loss = log_sum_exp - logit of the target,   d_logits = scale (exp(logits - log_sum_exp) - 1 at the target),
// scale being dL/d loss. Zeros in rows that are not scored. Of logits that SoftCap made, d_logits is that of its x: multiplied with
// 1 - (logits / cap)².
struct CrossEntropyBackward {
  ConstMatrix logits;  // [t, c] F32
  std::int64_t first;
  ConstMatrix log_sum_exp;  // [t, 1] F32, over the whole vocabulary
  ConstMatrix target;       // [1, t] I32; < 0: not scored
  float scale;
  Matrix d_logits;  // [t, c]; may be logits
  Matrix loss;      // [t, 1] F32; stays as it is in rows whose target is not among these columns
  float soft_cap = 0.0f;  // 0: none
};

// sum += gradient and squares += gradient², element by element, in F32. Either may be empty: it is not asked for. With the gradient
// dW = dyᵀ x of one sequence (matmul with transpose_a), squares added over sequences are the diagonal of Fisher's information:
// squares are taken of whole sequences, never of parts of one.
struct AddGradient {
  ConstMatrix gradient;
  Matrix sum;
  Matrix squares;
};

class GradientKernels {
 public:
  virtual ~GradientKernels() = default;
  void rms_norm_backward(const RmsNormBackward& op);
  void layer_norm_backward(const LayerNormBackward& op);
  void attention_backward(const AttentionBackward& op);
  void gated_product_backward(const GatedProductBackward& op);
  void relu_backward(const ReluBackward& op);
  [[nodiscard]] double squared_error(const SquaredError& op);  // waits for the device
  void log_sum_exp(const LogSumExp& op);
  void cross_entropy_backward(const CrossEntropyBackward& op);
  void add_gradient(const AddGradient& op);

 private:
  virtual void run(const RmsNormBackward& op) = 0;
  virtual void run(const LayerNormBackward& op) = 0;
  virtual void run(const AttentionBackward& op) = 0;
  virtual void run(const GatedProductBackward& op) = 0;
  virtual void run(const ReluBackward& op) = 0;
  virtual double run(const SquaredError& op) = 0;
  virtual void run(const LogSumExp& op) = 0;
  virtual void run(const CrossEntropyBackward& op) = 0;
  virtual void run(const AddGradient& op) = 0;
};

}  // namespace roundhouse
