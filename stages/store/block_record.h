// A quantized block as a record of the run store, and back. Codes are packed at their bits (model/quantized/bitstream.h).
#pragma once

#include <cstdint>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/quantized/linear_scheme.h"
#include "model/quantized/quantized_linear.h"
#include "stages/store/run_store.h"

namespace roundhouse {

Record to_record(const QuantizedBlock& block);
// Throws Error naming the linear if anything does not fit; `decoder` says which linears must be there.
QuantizedBlock block_from_record(const Record& record, const DecoderBlock& decoder);

// How each linear is quantized, in the order of DecoderBlock::linears(), from the attributes of a record alone. These do not tell whether
// a linear is reordered: the recipe does. A group size is in columns, also where it is the whole row. Throws Error.
struct RecordedScheme {
  LinearScheme scheme;
  std::int64_t sparse_entries = 0;
};
std::vector<RecordedScheme> schemes_from_attributes(const nlohmann::json& attributes,
                                                    const DecoderBlock& decoder);

}  // namespace roundhouse
