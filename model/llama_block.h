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
  void attend(const BlockWeights& weights, BlockState& state, Backend& backend) const;

  ModelConfig config_;
  std::int64_t max_length_ = 0;
  Tensor cos_;  // [max_length, head_dim / 2] F32
  Tensor sin_;
};

}  // namespace roundhouse
