// The decoder block of LLaMA and Mistral.
//
//   residual += o(attention(rope(q(n)), rope(k(n)), v(n)))   n = RMSNorm(residual; input_layernorm)
//   residual += down(silu(gate(m)) * up(m))                  m = RMSNorm(residual;
//   post_attention_layernorm)
#pragma once

#include "model/decoder_block.h"

namespace roundhouse {

class LlamaBlock : public DecoderBlock {
 public:
  // Computes the tables of the rotary embedding for positions 0 .. max_length - 1.
  LlamaBlock(const ModelConfig& config, std::int64_t max_length, Backend& backend);

  std::string prefix(int block) const override;
  BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                    LoadLinears linears) const override;
  void prepare(int group, const BlockWeights& weights, BlockState& state,
               Backend& backend) const override;
  void apply(int group, const BlockWeights& weights, BlockState& state,
             Backend& backend) const override;

 private:
  enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };
  enum NormIndex { kBeforeAttention, kBeforeMlp };
  // Of SavedActivations::inner.
  enum SavedIndex {
    kSavedQ,  // rotated
    kSavedK,
    kSavedV,
    kSavedAttention,
    kSavedLogSumExp,
    kSavedMiddle,  // the residual between attention and MLP
    kSavedGate,
    kSavedUp,
    kSavedCount
  };

  // The steps that both forward passes are made of.
  Tensor normalize(NormIndex norm, const BlockWeights& weights, const Tensor& x,
                   Backend& backend) const;
  // y (+)= x wᵀ + bias
  void project(LinearIndex linear, const BlockWeights& weights, const Tensor& x, Matrix y,
               Backend& backend, bool accumulate = false) const;
  Tensor project(LinearIndex linear, const BlockWeights& weights, const Tensor& x,
                 Backend& backend) const;
  void rotate(Tensor& x, std::int64_t heads, std::int64_t length, Backend& backend,
              bool backward = false) const;
  // Rotated queries and keys in. Fills log_sum_exp, unless it is nullptr.
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

  ModelConfig config_;
  std::int64_t max_length_ = 0;
  Tensor cos_;  // [max_length, head_dim / 2] F32
  Tensor sin_;
};

}  // namespace roundhouse
