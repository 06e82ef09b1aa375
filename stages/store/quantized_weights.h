// A committed block, back as weights to compute with.
#pragma once

#include <string>

#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// Linears dequantized from the store, or the original model's where they were left as they are; norms and biases from the original model, but for those that the method replaced. Throws Error if the block is missing.
BlockWeights load_quantized_weights(const CausalLM& model, const DecoderBlock& decoder,
                                    RunStore& store, const std::string& recipe, int block,
                                    Backend& backend);

}  // namespace roundhouse
