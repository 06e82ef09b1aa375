// The walk of every rank through the gradients of a model (stages/sensitivity/gradient_walk.h), over the stages of a pipeline and
// across interruptions.
//
// Forward, stage p hands the output of its last block to stage p + 1, shard by shard as they come; backward, the gradient at the input
// of its first block to stage p - 1. When a block is done, the gradient at its input is written down:
//
//   gradients/100x512/at-0008/shard-03      dL/d residual before block 8, which is that at the output of block 7
//
// That of the block after goes then, so that each stage has one set of them. A resume begins with the forward pass, and back from the
// newest of them from which all that is missing can be reached: a killed run loses a forward pass, and of each stage no more than the
// block that was under way.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "pipeline/schedule/mesh.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/sensitivity/gradient_walk.h"
#include "stages/store/run_store.h"

namespace roundhouse {

struct GradientSchedule {
  Backend& backend;
  const Mesh& mesh;
  const CausalLM& model;
  const DecoderBlock& decoder;
  const Samples& samples;
  RunStore& store;
  ActivationBudget& budget;
  std::size_t saved_activation_bytes;  // see BlockTask
  JobMonitor& monitor;
  GradientSums wanted;
  std::string folder;  // of the snapshots: "gradients/100x512"
  // As GradientWalk's. On return what is made of the block's gradients is committed.
  std::function<void(const BlockSite& site, BlockWeights& weights, BlockGradients& gradients)> take;
};

// Collective over all ranks. `done`: by block, what needs no gradients any more; the same on every rank. False, on all of them, if a
// rank stopped because it was asked to.
bool walk_all_gradients(const GradientSchedule& schedule, const std::vector<bool>& done);

}  // namespace roundhouse
