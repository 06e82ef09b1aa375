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
  void attend(const BlockWeights& weights, BlockState& state, Backend& backend) const;

  ModelConfig config_;
  std::int64_t max_length_ = 0;
};

}  // namespace roundhouse
