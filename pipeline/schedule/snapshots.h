// Snapshots of the activations between two blocks, which shorten a resume: without one, the finished blocks before the first
// missing one are run forward from the embedding on.
//
//   recipes/RECIPE/activations/after-0008/shard-03    the quantized stream of a recipe; empty for one that has none
//   activations/after-0008/shard-03                   the full-precision stream, which all recipes of a calibration set share (of
//                                                     another than the default: activations/of-SET/..)
//
// The first stands for the recipe's use of the second: what no recipe uses any more is removed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "pipeline/schedule/mesh.h"
#include "stages/flow/monitor.h"
#include "stages/flow/streams.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// When to write one. Where interruptions come every M seconds on average, that is when
//   L T / (2 M) >= W
// with T the seconds since the last one, L of these those of the forward passes that a resume would do again, and W what
// writing one takes: what is lost on average then equals what is spent (Young 1974, for a loss at the rate L / T).
class SnapshotTiming {
 public:
  // M in hours; 0: never. Time starts to count.
  explicit SnapshotTiming(double hours_between_interruptions)
      : between_(3600 * hours_between_interruptions) {}

  void block_done(double seconds, double forward_seconds);
  bool due(double bytes) const;  // of this rank, while all write at once
  void written(double bytes, double seconds);
  void restart() { since_ = lost_ = 0; }  // what was done so far is safe

 private:
  double between_;
  double since_ = 0, lost_ = 0;    // T, L
  double bytes_per_second_ = 2e8;  // until it is known: that of a busy network file system
};

// One shard of activations as a record of one tensor. load_shard() throws Error if it does not fit, or has gone.
Record record_of_shard(std::string_view tensor, Activations& activations, int shard);
void load_shard(const std::string& key, std::string_view tensor, Activations& activations,
                int shard, RunStore& store);
// Collective: whether these records (the same keys on all) are there and whole. Ranks share the reading; damaged ones are removed;
// what one has seen the others expect to see.
bool all_whole(const std::vector<std::string>& keys, RunStore& store, Communicator& world);

// Blocks before the newest snapshot of a recipe that is whole and not behind its first missing block; 0: there is none. The same on
// every rank. Collective: ranks share the reading.
int find_snapshot(const Recipe& recipe, int first_missing, int shards, RunStore& store,
                  Communicator& world);

// The snapshots of one recipe on one stage; shards are those of this rank.
class Snapshots {
 public:
  // `all`: the recipes of the run, which share the full-precision stream.
  Snapshots(const Recipe& recipe, const std::vector<Recipe>& all, PartRange shards, RunStore& store,
            Monitor& monitor);

  // Collective over the team. Then removes the older ones.
  void write(int blocks_done, const StreamActivations& activations, Communicator& team);
  // Throws Error if it does not fit, or has gone.
  void load(int blocks_done, const StreamActivations& activations);
  // On one rank, when the recipe is finished: those of all ranks and stages.
  void remove_all(int shards);

 private:
  void remove(int place, PartRange shards);

  const Recipe& recipe_;
  const std::vector<Recipe>& all_;
  PartRange shards_;
  RunStore& store_;
  Monitor& monitor_;
};

// On one rank, while nobody writes any: removes snapshots of all but these recipes, and what they shared with no other.
void remove_unused_snapshots(const std::vector<std::string>& unfinished, RunStore& store);

}  // namespace roundhouse
