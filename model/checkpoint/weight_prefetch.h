// Brings the weights of the block that comes next from the disk into the page cache while another one is worked on.
#pragma once

#include <thread>

#include "model/block/decoder_block.h"
#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/weight_parts.h"

namespace roundhouse {

// One block at a time. Only ever a matter of speed: what cannot be read is left to load(), which says so.
class WeightPrefetch {
 public:
  explicit WeightPrefetch(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  // In a thread of its own, of the linears' weights what this rank is to read; a block that is still being read is given up.
  void start(const DecoderBlock& decoder, int block, WeightPart part);

 private:
  const Checkpoint& checkpoint_;
  std::jthread thread_;
};

}  // namespace roundhouse
