// A quantized block as a record of the run store, and back. Codes are packed at their bits (model/quantized/bitstream.h).
#pragma once

#include "model/block/decoder_block.h"
#include "model/quantized/quantized_linear.h"
#include "stages/store/run_store.h"

namespace roundhouse {

Record to_record(const QuantizedBlock& block);
// Throws Error naming the linear if anything does not fit; `shape` says which linears must be there.
QuantizedBlock block_from_record(const Record& record, const DecoderBlock& shape);

}  // namespace roundhouse
