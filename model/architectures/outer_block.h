// Linears outside the blocks, as a block of its own behind the last one:
//
//   group  linear          input                                    after apply()
//   0      embed_tokens    the residual; nobody asks for it         as before
//   1      lm_head         what the head is applied to (head.h)     as before
//
// or one of the two. A tied head is read from the embedding. Names are those of modules, without a prefix.
#pragma once

#include <string>
#include <vector>

#include "model/block/decoder_block.h"

namespace roundhouse {

class OuterBlock final : public DecoderBlock {
 public:
  // `include`: some of kOuterLinears.
  OuterBlock(const ModelConfig& config, const std::vector<std::string>& include);

  BlockWeights load(const Checkpoint& checkpoint, int block, Backend& backend,
                    LoadLinears linears) const override;
  void apply(int group, const BlockWeights& weights, BlockState& state,
             Backend& backend) const override;
  bool flows() const override { return false; }

 private:
  Tensor input_from_residual(int group, const BlockWeights& weights, const Tensor& residual,
                             Backend& backend) const override;
  std::vector<Tensor> forward_half(Half half, const BlockWeights& weights, Tensor& residual,
                                   std::int64_t length, Backend& backend) const override;
  void backward_half(Half half, const BlockWeights& weights, SavedActivations::OfHalf& saved,
                     std::int64_t length, Tensor& gradient, const TakeGradient& take,
                     InputGradient input_gradient, Backend& backend) const override;

  ModelConfig config_;
  std::vector<std::string> sources_;  // tensors of the checkpoint, by linear
};

}  // namespace roundhouse
