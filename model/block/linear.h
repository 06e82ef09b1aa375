// A linear y = x wᵀ + bias of a decoder block, forward and backward: dw = dyᵀ x and dx = dy w.
#pragma once

#include "kernels/backend.h"
#include "model/block/decoder_block.h"

namespace roundhouse {

// y (+)= x wᵀ + bias. `linear` is an index into DecoderBlock::linears().
void apply_linear(const BlockWeights& weights, int linear, const Tensor& x, Matrix y,
                  bool accumulate, Backend& backend);
Tensor apply_linear(const BlockWeights& weights, int linear, const Tensor& x, Backend& backend);

// dyᵀ x in F32.
void weight_gradient(ConstMatrix dy, ConstMatrix x, Matrix dw, Backend& backend);
Tensor weight_gradient(ConstMatrix dy, ConstMatrix x, Backend& backend);

// dx (+)= dy w
void add_input_gradient(const Tensor& dy, const Tensor& w, Matrix dx, bool accumulate,
                        Backend& backend);
Tensor input_gradient_of(const Tensor& dy, const Tensor& w, Backend& backend);

}  // namespace roundhouse
