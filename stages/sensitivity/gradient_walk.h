// Gradients of a whole model's loss with respect to the weights of its linears, block by block.
//
// The full-precision stream goes forward through a team's blocks, which keep their inputs; then come the blocks in reverse, one
// resident at a time: loaded, run forward again, and backward, from the gradient of its output to that of its input. What is wanted
// of a block's gradients is summed while they are made, and used as soon as the sums are complete: nothing of it is stored.
//
// A team has a run of consecutive blocks. What comes in and goes out at its ends goes shard by shard, so that teams that follow
// one another never wait for all samples: a team works on shard s + 1 of a block while the next one works on shard s.
#pragma once

#include <cstdint>
#include <functional>

#include "model/causal_lm.h"
#include "stages/flow/activations.h"
#include "stages/sensitivity/block_gradients.h"

namespace roundhouse {

// The ends of a run of blocks. Called for each shard of the rank, in order.
struct WalkEnds {
  using Move = std::function<void(int shard, Activations& of_shard)>;
  Move receive_input = {};  // of the first block, into the shard; none: the embedding
  Move send_output = {};    // of the last block; none: nobody asks for it
  // Of the last block's output; none: the model ends here, and its loss begins the gradient. False: it will not come, and then that
  // of no other shard of the team either.
  std::function<bool(int shard, Activations& of_shard)> receive_gradient = {};
  Move send_gradient = {};            // of the first block's input; none: nobody asks for it
  std::function<void()> finish = {};  // what is still being sent lives until here
};

struct GradientWalk {
  Backend& backend;
  Communicator& team;
  Transport& device_team;
  const CausalLM& model;
  const DecoderBlock& decoder;
  const Samples& samples;
  ActivationBudget& budget;            // holds the inputs of the team's blocks
  std::size_t saved_activation_bytes;  // see BlockTask
  Monitor& monitor;
  GradientSums wanted;
  PartRange blocks;      // of the team, one at least
  int first_wanted = 0;  // the way back ends with this block, or with the first of `blocks`
  WalkEnds ends = {};
  // Whether the gradients of a block are wanted; none: of all.
  std::function<bool(int block)> summed = {};
  // Collective over the team, from the last block to the first, once the sums of a block are complete. Weights are the
  // original ones.
  std::function<void(const BlockSite& site, BlockWeights& weights, BlockGradients& gradients)> take;
  // After it: the gradient at the input of this block, which is that at the output of the one before; nullptr where nobody asks
  // for it. False: the walk ends here.
  std::function<bool(int block, Activations* gradient)> block_done = {};
};

// Collective over the team. False if block_done() or receive_gradient() said so. To the journal, from the team's rank 0: {"event":
// "loss", "mean": nats a token, of the samples whose loss is finite, "not_finite": the others, if any} where the model ends; for each
// block {"event": "gradients_forward" or, on the way back and without take(), "gradients_block", "block", "samples", "length",
// "seconds", "ranks"}; and {"event": "gradients", "blocks": [first, end], "phases": ..., "flops": ...} (stages/flow/phase_clock.h) in
// the end.
bool walk_gradients(const GradientWalk& walk);

}  // namespace roundhouse
