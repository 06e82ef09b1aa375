// The ranks of a team load a block together: each reads and converts a part of its weights, and tells it to the others from device
// to device.
//
// On devices alone: in host memory a message costs what the conversion does, so there each rank loads all by itself.
#pragma once

#include "model/checkpoint/weight_parts.h"
#include "stages/flow/block_site.h"

namespace roundhouse {

// What a rank of the team reads of the weights of a block's linears.
WeightPart part_read_by_rank(const Communicator& team, const Backend& backend);

// Collective: DecoderBlock::load() of a block of the model (not of what stands outside its blocks), with the same values. What it
// throws on any rank all throw. Norms and biases, which are small, every rank reads.
BlockWeights load_shared(const Checkpoint& checkpoint, const BlockSite& site);

// Bytes that all ranks of a team send for a block that they load in parts, but for the words by which they agree, and those that the
// device of one receives.
struct LoadTraffic {
  double sent = 0, received = 0;
};
LoadTraffic load_traffic(const std::vector<LinearSpec>& linears, int team,
                         double bytes_of_activation);

}  // namespace roundhouse
