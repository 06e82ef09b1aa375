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

#include "model/block/decoder_block.h"
#include "model/block/self_attention.h"

namespace roundhouse {

class OptBlock : public DecoderBlock {
 public:
  OptBlock(const ModelConfig& config, std::int64_t max_length);

  BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                    LoadLinears linears) const override;
  void apply(int group, const BlockWeights& weights, BlockState& state,
             Backend& backend) const override;

 private:
  enum LinearIndex { kQ, kK, kV, kOutProjection, kFc1, kFc2 };
  enum Norm { kAttentionNorm, kFinalNorm };

  // The input of a half's linears: the norm of the residual, or the residual itself.
  Tensor input_of(Norm norm, const BlockWeights& weights, const Tensor& residual,
                  Backend& backend) const;
  void normalize(Norm norm, const BlockWeights& weights, const Tensor& x, Matrix y,
                 Backend& backend) const;
  Tensor fc1_and_relu(const BlockWeights& weights, const Tensor& x, Backend& backend) const;

  Tensor input_from_residual(int group, const BlockWeights& weights, const Tensor& residual,
                             Backend& backend) const override;
  // With norms last, a half's inner activations end with the sum before its norm.
  std::vector<Tensor> forward_half(Half half, const BlockWeights& weights, Tensor& residual,
                                   std::int64_t length, Backend& backend) const override;
  void backward_half(Half half, const BlockWeights& weights, SavedActivations::OfHalf& saved,
                     std::int64_t length, Tensor& gradient, const TakeGradient& take,
                     InputGradient input_gradient, Backend& backend) const override;
  // The linears of a half: dn (+)= the gradient of their input, from that of their output. Empty dn: it is not wanted.
  void attention_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                          std::int64_t length, const Tensor& dy, const TakeGradient& take,
                          Matrix dn, Backend& backend) const;
  void mlp_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                    std::int64_t length, const Tensor& dy, const TakeGradient& take, Matrix dn,
                    Backend& backend) const;
  // gradient (+)= the gradient of a norm's input x, from that of its output, dy.
  void norm_backward(Norm norm, const BlockWeights& weights, const Tensor& x, const Tensor& dy,
                     Tensor& gradient, bool accumulate, Backend& backend) const;

  ModelConfig config_;
  SelfAttention attention_;
};

}  // namespace roundhouse
