// The decoder block of LLaMA and Mistral.
//
//   residual += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = RMSNorm(residual; input_layernorm)
//   residual += down(silu(gate(m)) * up(m))                  m = RMSNorm(residual; post_attention_layernorm)
#pragma once

#include "model/block/decoder_block.h"
#include "model/block/self_attention.h"

namespace roundhouse {

class LlamaBlock : public DecoderBlock {
 public:
  LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend);

  BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                    LoadLinears linears) const override;
  void apply(int group, const BlockWeights& weights, BlockState& state,
             Backend& backend) const override;

 private:
  enum LinearIndex { kO = SelfAttention::kO, kGate, kUp, kDown };
  enum NormIndex { kBeforeAttention, kBeforeMlp };
  enum MlpInner { kGateOutput, kUpOutput };

  // silu(gate) * up
  static Tensor gated_product(const Tensor& gate, const Tensor& up, Backend& backend);
  Tensor normalize(NormIndex norm, const BlockWeights& weights, const Tensor& x,
                   Backend& backend) const;
  // gradient += that of a norm's input x, from that of its output.
  void add_norm_gradient(NormIndex norm, const BlockWeights& weights, const Tensor& x,
                         const Tensor& dy, Tensor& gradient, Backend& backend) const;

  Tensor input_from_residual(int group, const BlockWeights& weights, const Tensor& residual,
                             Backend& backend) const override;
  std::vector<Tensor> forward_half(Half half, const BlockWeights& weights, Tensor& residual,
                                   std::int64_t length, Backend& backend) const override;
  void backward_half(Half half, const BlockWeights& weights, SavedActivations::OfHalf& saved,
                     std::int64_t length, Tensor& gradient, const TakeGradient& take,
                     InputGradient input_gradient, Backend& backend) const override;
  void attention_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                          std::int64_t length, Tensor& gradient, const TakeGradient& take,
                          InputGradient input_gradient, Backend& backend) const;
  void mlp_backward(const BlockWeights& weights, SavedActivations::OfHalf& saved,
                    std::int64_t length, Tensor& gradient, const TakeGradient& take,
                    Backend& backend) const;

  ModelConfig config_;
  SelfAttention attention_;
};

}  // namespace roundhouse
