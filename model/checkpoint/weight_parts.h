// The weights of a block's linears in parts, of which each of several ranks reads one.
//
// All linears in order, each in the pieces in which it is hashed (tensor_contents.h), are one row of pieces, and a part is a run of
// it. The cut follows from the shapes alone; where it lies changes no value, since each is converted by itself.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/checkpoint/checkpoint.h"

namespace roundhouse {

struct WeightPart {
  int part = 0, of = 1;
};

struct LinearPieces {
  int linear;  // an index into DecoderBlock::linears()
  Pieces pieces;
};

std::int64_t pieces_of_block(const std::vector<LinearSpec>& linears);
// In order; no linear twice. Empty where there are fewer pieces than parts.
std::vector<LinearPieces> pieces_of_part(const std::vector<LinearSpec>& linears, WeightPart part);
// Values of the part that has most.
std::int64_t largest_part(const std::vector<LinearSpec>& linears, int parts);

// Reads, checks and converts one part into `weights`, whose linears are there, whole, of any values. Throws as DecoderBlock::load()
// for what the part has a piece of. Returns the hashes of its pieces.
std::vector<std::string> load_part(const Checkpoint& checkpoint, const DecoderBlock& decoder,
                                   WeightPart part, BlockWeights& weights, Backend& backend);

// Checkpoint::note_content() of all linears of a block, by the hashes of all parts' pieces in order.
void note_parts(const Checkpoint& checkpoint, const DecoderBlock& decoder, int block,
                std::span<const std::string> hashes);

}  // namespace roundhouse
