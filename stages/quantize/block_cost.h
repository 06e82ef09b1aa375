// What quantizing one block costs at least, from its shapes: the operations that the methods count as they work
// (stages/flow/phase_clock.h; block_bench compares the two) and the activations that cross to a device and back.
#pragma once

#include <map>
#include <string>

#include "model/block/decoder_block.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

struct BlockCost {
  std::map<std::string, double> flops;  // by phase
  double bytes_up = 0, bytes_down = 0;  // between host and device, 2 bytes a value
};

// Of GPTQ, AWQ and SignRound; nothing for other methods. Samples are all of `length` tokens.
BlockCost cost_of_block(const Recipe& recipe, const DecoderBlock& shape, int samples, int length);

// Factorizations and what solves linears work in F32, the rest on inputs of the activation type.
bool works_in_f32(const std::string& phase);

}  // namespace roundhouse
