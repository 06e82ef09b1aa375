// The decoder block of OPT (Zhang et al. 2022, "OPT: Open Pre-trained Transformer Language Models"). With norms first:
//
//   residual += out(attention(q(n), k(n), v(n)))   n = LayerNorm(residual; self_attn_layer_norm)
//   residual += fc2(relu(fc1(m)))                  m = LayerNorm(residual; final_layer_norm)
//
// With norms after the sum (opt-350m) n and m are the residual itself, and
//
//   residual = LayerNorm(residual + ...)           the same two norms
//
//   group  linears   input                                     after apply()
//   0      q, k, v   LayerNorm(residual), or the residual      input = attention output
//   1      out       attention output                          residual as above
//   2      fc1       LayerNorm(residual), or the residual      input = relu(fc1(input))
//   3      fc2       relu(fc1(...))                            residual as above
#pragma once

#include "model/decoder_block.h"

namespace roundhouse {

class OptBlock : public DecoderBlock {
 public:
  OptBlock(const ModelConfig& config, std::int64_t max_length);

  std::string prefix(int block) const override;
  BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                    LoadLinears linears) const override;
  void prepare(int group, const BlockWeights& weights, BlockState& state,
               Backend& backend) const override;
  void apply(int group, const BlockWeights& weights, BlockState& state,
             Backend& backend) const override;

 private:
  enum LinearIndex { kQ, kK, kV, kOutProjection, kFc1, kFc2 };
  enum Norm { kAttentionNorm, kFinalNorm };
  // Of SavedActivations::inner.
  enum SavedIndex {
    kSavedQ,
    kSavedK,
    kSavedV,
    kSavedAttention,
    kSavedLogSumExp,
    kSavedMiddle,  // the sum after attention, before a norm
    kSavedInner,   // relu(fc1(...))
    kSavedSum,     // norms last: the sum after fc2, before its norm
    kSavedCount
  };

  // The steps that both forward passes are made of. The input of a half: the norm of x, or x itself.
  Tensor input_of(Norm norm, const BlockWeights& weights, const Tensor& x, Backend& backend) const;
  void normalize(Norm norm, const BlockWeights& weights, const Tensor& x, Matrix y,
                 Backend& backend) const;
  // y (+)= x wᵀ + bias
  void project(LinearIndex linear, const BlockWeights& weights, const Tensor& x, Matrix y,
               Backend& backend, bool accumulate = false) const;
  Tensor project(LinearIndex linear, const BlockWeights& weights, const Tensor& x,
                 Backend& backend) const;
  // Fills log_sum_exp, unless it is nullptr.
  Tensor attend(const Tensor& q, const Tensor& k, const Tensor& v, std::int64_t length,
                Tensor* log_sum_exp, Backend& backend) const;
  float attention_scale() const;
  void check_sequences(const Tensor& residual, std::int64_t sequences, std::int64_t length) const;

  void forward_saving_all(const BlockWeights& weights, BlockState& state, SavedActivations& saved,
                          Backend& backend) const override;
  Tensor backward_from_all(const BlockWeights& weights, SavedActivations saved, Tensor dy,
                           const TakeGradient& take, InputGradient input_gradient,
                           Backend& backend) const override;
  // The two halves of the backward pass: from the gradient of a half's output to that of its input, in place.
  void mlp_backward(const BlockWeights& weights, SavedActivations& saved, Tensor& gradient,
                    const TakeGradient& take, Backend& backend) const;
  void attention_backward(const BlockWeights& weights, SavedActivations& saved, Tensor& gradient,
                          const TakeGradient& take, InputGradient input_gradient,
                          Backend& backend) const;
  // gradient (+)= the gradient of a norm's input x, from that of its output, dy.
  void norm_backward(Norm norm, const BlockWeights& weights, const Tensor& x, const Tensor& dy,
                     Tensor& gradient, bool accumulate, Backend& backend) const;

  ModelConfig config_;
  std::int64_t max_length_ = 0;
};

}  // namespace roundhouse
