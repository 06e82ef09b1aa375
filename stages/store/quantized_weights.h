// A committed block, back as weights to compute with.
#pragma once

#include <string>

#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "model/quantized/outer_linears.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// Linears dequantized from the store, or the original model's where they were left as they are; norms and biases from the original model, but for those that the method replaced. Throws Error if the block is missing.
BlockWeights load_quantized_weights(const CausalLM& model, const DecoderBlock& decoder,
                                    RunStore& store, const std::string& recipe, int block,
                                    Backend& backend);

// What the recipe has made of the linears outside the blocks; those that it left as they are do not come. `outer`: DecoderBlock::outer() of what it includes; `unit`: the number
// of the model's blocks.
OuterLinears load_outer_linears(const DecoderBlock& outer, RunStore& store,
                                const std::string& recipe, int unit);

}  // namespace roundhouse
