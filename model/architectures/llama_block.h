// The decoder block of LLaMA and of all that differ from it by a few things (ModelConfig): biases, fused linears, norms of queries
// and keys, the rotation, and where norms stand.
//
//   residual += m o(attention(rope(q(n)), rope(k(n)), v(n)))   n = RMSNorm(residual; input_layernorm)
//   residual += m down(f(gate(n)) * up(n))                     n = RMSNorm(residual; post_attention_layernorm)
//
// m is the residual multiplier, f the gate's function. With norms of outputs
//
//   residual += m RMSNorm(o(...); post_attention_layernorm)    and the same with down and post_feedforward_layernorm;
//
// n is then the residual itself (OLMo 2), or there are norms of both (Gemma), the MLP's input's being pre_feedforward_layernorm.
//
//   group  linears                 input                               after apply()
//   0      q, k, v   or qkv        RMSNorm(residual), or the residual  input = attention output
//   1      o                       attention output                    residual as above
//   2      gate, up  or gate_up    RMSNorm(residual), or the residual  input = f(gate) * up
//   3      down                    f(gate) * up                        residual as above
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
  // Where BlockWeights::norms has what a half's input and output are normalized with; -1: nowhere.
  struct HalfNorms {
    int input = -1, output = -1;
  };
  // Fused, the first holds both. With norms of outputs a half's inner activations end with the output before its norm.
  enum MlpInner { kGateOutput, kUpOutput };

  struct GateUp {
    Matrix gate, up;
  };
  // Outputs of the linears gate and up.
  std::vector<Tensor> gate_and_up(const BlockWeights& weights, const Tensor& n,
                                  Backend& backend) const;
  GateUp parts_of(std::vector<Tensor>& gate_and_up) const;
  // f(gate) * up
  Tensor gated_product(const GateUp& parts, Backend& backend) const;
  // The input of a half's first linears: the norm of the residual, or a copy of it.
  Tensor input_of(Half half, const BlockWeights& weights, const Tensor& residual,
                  Backend& backend) const;
  void normalize(int norm, const BlockWeights& weights, const Tensor& x, Matrix y,
                 Backend& backend) const;
  // residual += what a half's last linear makes of x. Returns its output before the norm, where there is one and it is asked for.
  Tensor add_output(Half half, const BlockWeights& weights, const Tensor& x, bool keep,
                    Tensor& residual, Backend& backend) const;
  // From the gradient of the residual after a half to that of its last linear's output; empty: it is the same.
  Tensor output_gradient(Half half, const BlockWeights& weights, SavedActivations::OfHalf& saved,
                         const Tensor& gradient, Backend& backend) const;
  // gradient += that of a half's input, from that of what its first linears read; `add` adds theirs to a matrix.
  using AddInputGradients = std::function<void(Matrix to, bool accumulate)>;
  void add_half_gradient(Half half, const BlockWeights& weights, const Tensor& x,
                         const AddInputGradients& add, Tensor& gradient, Backend& backend) const;

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

  const HalfNorms& norms_of(Half half) const {
    return half == Half::kAttention ? attention_norms_ : mlp_norms_;
  }

  ModelConfig config_;
  HalfNorms attention_norms_, mlp_norms_;
  SelfAttention attention_;
  int o_, gate_, up_, down_;  // linears; gate and up are one where they are fused
};

}  // namespace roundhouse
