// One stage's walk through one recipe.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "model/checkpoint/weight_prefetch.h"
#include "pipeline/schedule/handover.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/schedule/snapshots.h"

namespace roundhouse {

class RecipeWalk {
 public:
  // `mesh`: the one that the recipe goes through. `number`: of the recipe among all.
  RecipeWalk(Schedule& schedule, const Mesh& mesh, Handover& handover, std::size_t number,
             const std::vector<Recipe>& all, const RecipeState& state);

  // kFailed: here or on a stage before this one; whoever found it has noted it.
  enum class End { kDone, kFailed, kStopped };
  // Precondition: something is missing.
  End run() { return in_order() ? run_in_order() : run_independent(); }

  // In place of run() once this stage has stopped: takes what the stage before still sends (it may not have heard yet)
  // and throws it away, and tells the next one not to wait.
  void skip();

 private:
  bool receives() const {
    return in_order() && first_block() < own().begin && own().begin <= last_block();
  }
  bool hands_over() const {
    return in_order() && first_block() < own().end && own().end <= last_block();
  }
  bool in_order() const { return recipe_.needs.streams(); }
  PartRange own() const { return mesh_.blocks(); }
  PartRange shards() const {
    return parts_of_rank(samples_->shards(), mesh_.team().rank(), mesh_.team().size());
  }
  int first_block() const { return state_.snapshot; }
  int last_block() const { return state_.last_missing(); }

  End run_independent();
  End run_in_order();
  End stopped();
  End failed();
  void report_arrival(int block, double seconds);
  // The team ends at the same block: its rank 0 decides.
  bool stop();
  StreamActivations make_activations();
  void embed(StreamActivations& activations);
  BlockSite site(int block) const;
  BlockTask task(int block, BlockWeights& weights, const StreamActivations& activations);
  // False: it cannot be made, which is noted.
  bool make_unit(int block, const StreamActivations& activations);
  // Of making a unit: what only running it forward would take, by floating-point operations.
  double forward_share() const;
  // Each stream through its own weights of the block.
  void run_committed(int block, const StreamActivations& activations);
  // The team's rank 0 decides for all of it.
  void write_snapshot(int blocks_done, const StreamActivations& activations, Snapshots& snapshots);

  Schedule& s_;
  const Mesh& mesh_;
  Handover& handover_;
  std::size_t number_;
  const Recipe& recipe_;
  const std::vector<Recipe>& all_;
  const RecipeState& state_;
  const nlohmann::json nothing_decided_;
  const Samples* samples_;          // nullptr unless it needs streams
  SnapshotTiming timing_;           // of the activations between blocks
  SnapshotTiming progress_timing_;  // of what is learned inside one
  std::unique_ptr<Method> method_;
  WeightPrefetch prefetch_;
};

}  // namespace roundhouse
