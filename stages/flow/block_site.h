// Who works on a block, and where: all that moving micro-batches through it takes. The same on every rank of the team, but for
// what the rank holds. Nothing is owned.
#pragma once

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/block/decoder_block.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

struct BlockSite {
  Backend& backend;
  Communicator& team;      // the ranks that share this block; moves host memory
  Transport& device_team;  // the same ranks; moves the backend's memory
  const DecoderBlock& decoder;
  int block;               // which one
  const Samples* samples;  // nullptr: nothing goes through
  Monitor& monitor;
};

}  // namespace roundhouse
