// What a method needs besides the weights of the block at hand. A run looks here for what it has to bring, before it begins.
#pragma once

#include <optional>
#include <string>

#include "stages/sensitivity/gradient_sums.h"

namespace roundhouse {

struct Needs {
  // The two ways in which calibration samples go through a model that is being quantized, block by block.
  bool quantized_stream = false;       // through the blocks as quantized so far
  bool full_precision_stream = false;  // through the original blocks

  // Gradients of the loss of the original model, from so many samples of the run's calibration text.
  struct Gradients {
    int samples;
    int sequence_length;  // tokens
    GradientSums sums = {};
    // What is made of a block's sums while they are there: the block itself, by Method::quantize(), or statistics, by
    // Method::statistics(), from which Method::decide() decides.
    enum class Use { kBlock, kStatistics };
    Use use = Use::kBlock;
  };
  std::optional<Gradients> gradients = {};

  bool decision = false;  // Method::decide() is to be called before the first block
  bool makes_blocks_of_gradients() const {
    return gradients && gradients->use == Gradients::Use::kBlock;
  }
  // What the method gathers of the full-precision stream at each block: recipes of one method that say the same (and have the same
  // overrides) have the same, and those of a wave gather it once. Empty: nothing.
  std::string gathers = {};
  int widest_team = 0;  // ranks of a team beyond which a block gets no faster; 0: one a shard

  // Without any, blocks do not depend on each other, and nothing flows between them.
  bool streams() const { return quantized_stream || full_precision_stream; }
  bool calibration() const { return streams() || gradients.has_value(); }
};

}  // namespace roundhouse
