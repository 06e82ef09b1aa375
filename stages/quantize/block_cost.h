// What quantizing one block costs at least, from its shapes: the operations that a method counts as it works
// (stages/flow/phase_clock.h; block_bench compares the two) and the activations that cross to a device and back.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "model/block/decoder_block.h"

namespace roundhouse {

struct BlockCost {
  std::map<std::string, double> flops;  // by phase
  double bytes_up = 0, bytes_down = 0;  // between host and device, kBytesOfActivation a value
};
inline constexpr double kBytesOfActivation = 2;  // on a device

// Of one block and so many tokens.
struct BlockSizes {
  const DecoderBlock& block;
  double tokens;

  double rows(int linear) const;
  double cols(const SharedInput& group) const { return static_cast<double>(group.cols); }
  double weights(std::size_t first,
                 std::size_t last) const;  // of the groups from `first` to `last`
  double all_weights() const { return weights(0, block.shared_inputs().size() - 1); }
  double stream_bytes() const;  // of the residual
};

// Factorizations and what solves linears work in F32, the rest on inputs of the activation type.
bool works_in_f32(const std::string& phase);

}  // namespace roundhouse
