// What quantizing one block costs at least, from its shapes: the operations that a method counts as it works
// (stages/flow/phase_clock.h; block_bench compares the two), how far they spread over a team, what crosses to a device and
// between ranks, and the memory that it takes. Read by the planner, by estimates of time left and by the benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/block/decoder_block.h"

namespace roundhouse {

// Part of a phase's work, in equal pieces that ranks take whole; parts come one after the other.
struct Cut {
  static constexpr int kShards = 0;  // as many pieces as the calibration has shards
  double share;                      // of the phase's work
  int pieces;
};

// Matrices of which each piece of the work makes one, and their sum (comm/tree_sum.h).
struct PieceSum {
  std::vector<double> tiles;  // bytes of each, all matrices together: the first is summed at rank
                              // `first_owner`, the next at the next rank, in turns
  int pieces = Cut::kShards;
  int first_owner = 0;  // modulo the team's size
  double times = 1;
  bool gathered = false;  // the tiles then go to the first owner
};

// Messages within a team, in bytes.
struct TeamTraffic {
  std::vector<PieceSum> sums;
  double shared = 0;  // from one rank to all others: matrices, between devices
  // Made by tiles, and wanted whole by all: between hosts, and between devices.
  double gathered = 0, codes = 0;
  // In values of the activation type: the same between devices; and, between hosts, what any rank may want of any other.
  double spread = 0, scattered = 0;
  double rounds = 0;  // that all ranks go through together: each takes a message's latency
};

// Of a rank, beside its streams and the block's weights.
struct BlockMemory {
  double summed = 0;  // on the device: sums of one piece that are open at the same time
  int pieces = Cut::kShards;
  int added_at_once = 1;  // of `summed`, as in tree_sum.h
  double arriving = 0;    // of the piece that comes last, what is there at once; 0: all of `summed`
  double whole = 0;       // on the device, when nothing is summed
  double gathered = 0;  // on the device, of the sums that are put together at one rank, the largest
  double band = 0;      // and its largest band (stages/flow/shard_sum.h)
  double weights = 0;   // on the device, always there: in values of the activation type
  double by_tiles = 0;  // on the device, always there, dealt over the team
  double replaced = 0;  // of the block's weights, those that make room for others: as `weights`
  double kept_cols = 0;  // on the host, activations inside the block: values a token
  double streams = 0;    // on the host, further copies of a stream
  std::int64_t saved_sequences =
      0;  // that go through forward and backward at once, what is between saved if there is room
};

struct BlockCost {
  std::map<std::string, double> flops;  // by phase
  double bytes_up = 0, bytes_down = 0;  // between host and device, kBytesOfActivation a value

  std::map<std::string, double> attention =
      {};  // operations in attention, which `flops` leaves out
  std::map<std::string, std::vector<Cut>> cuts = {};  // by phase; without: by shards
  double rounded =
      0;  // in "solve", by tiles: weights that get a grid and are rounded, each time counted
  double clustered = 0;  // likewise: weights that are sorted and clustered
  TeamTraffic traffic = {};
  BlockMemory memory = {};

  // Of a phase's work, what the rank of a team that has most of it does: 1 / team at best.
  double busiest(const std::string& phase, int team, int shards) const;
};
inline constexpr double kBytesOfActivation = 2;  // on a device

// Bytes that all ranks of a team send for one block, and those that its busiest rank receives.
struct TeamBytes {
  double sent = 0;
  double received_by_devices = 0, received_by_hosts = 0;
};
TeamBytes team_bytes(const TeamTraffic& traffic, int team, int shards, double bytes_of_activation);

// Of a block, by other recipes that go through it (BlockTask).
struct MadeBefore {
  bool original = false;  // its output of the full-precision stream
  bool gathered = false;  // Needs::gathers
};

// Of one block and so many tokens, in sequences of `length`.
struct BlockSizes {
  const DecoderBlock& block;
  double tokens;
  double length = 0;

  double rows(int linear) const;
  double cols(const SharedInput& group) const { return static_cast<double>(group.cols); }
  double weights(std::size_t first,
                 std::size_t last) const;  // of the groups from `first` to `last`
  double all_weights() const { return weights(0, block.shared_inputs().size() - 1); }
  double stream_bytes() const;     // of the residual
  double attention() const;        // operations of one forward pass: two products, causal
  std::vector<Cut> tiles() const;  // of work that is proportional to a linear's weights
  // Adds codes, scales and zero points of all linears, and the sums of errors, as a team tells them to each other.
  void share_codes(TeamTraffic& traffic, std::int64_t group_size) const;
  int tile_count() const;
};

// Of F32 matrices like a linear's weights: the tiles of BlockSum (stages/flow/block_sum.h).
std::vector<double> bytes_of_tiles(const LinearSpec& linear, int matrices = 1);

// Of the walk through a model's gradients: one block, forward, forward again and backward, and what is summed.
BlockCost gradient_cost(const BlockSizes& sizes, int sums);

// Factorizations and what solves linears work in F32, the rest on inputs of the activation type.
bool works_in_f32(const std::string& phase);

}  // namespace roundhouse
