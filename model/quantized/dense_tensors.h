// Norms and biases that a method has changed: they go with the quantized linears, into records, evaluation and exports.
#pragma once

#include <map>
#include <string>

#include "base/tensor.h"
#include "model/block/decoder_block.h"

namespace roundhouse {

// By their name within the block ("input_layernorm.weight", "fc1.bias"), in the checkpoint's type.
using DenseTensors = std::map<std::string, HostTensor>;

// Throws Error naming the tensor unless it is a norm or a bias of this block with its shape, F32, F16 or BF16, and finite.
void validate(const DenseTensors& tensors, const DecoderBlock& decoder);
// Puts them in the place of those in `weights`.
void replace(BlockWeights& weights, const DenseTensors& tensors, const DecoderBlock& decoder,
             Backend& backend);

}  // namespace roundhouse
