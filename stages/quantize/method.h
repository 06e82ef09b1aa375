// A method turns one block into quantized linears, with the whole team. Adding one: a folder here, one line in the table of
// methods.cpp.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/causal_lm.h"
#include "model/checkpoint/checkpoint.h"
#include "model/quantized/linear_scheme.h"
#include "model/quantized/quantized_linear.h"
#include "stages/flow/activations.h"
#include "stages/flow/block_site.h"
#include "stages/quantize/block_cost.h"
#include "stages/quantize/block_progress.h"
#include "stages/quantize/block_share.h"
#include "stages/quantize/linear_overrides.h"
#include "stages/quantize/needs.h"
#include "stages/sensitivity/block_gradients.h"

namespace roundhouse {

// What a method may touch when it decides for the whole model. Not owned.
struct ModelTask {
  Backend& backend;
  Communicator& world;  // all ranks
  const CausalLM& model;
  const DecoderBlock& decoder;
  const Samples* samples;  // nullptr if no recipe needs streams
  Monitor& monitor;
  // By block, what Method::statistics() returned; empty where the method asks for none.
  std::vector<nlohmann::json> statistics = {};
  std::span<const LinearOverride> overrides = {};  // of the recipe
};

// Sums of a block's gradients: this rank's tiles of each linear.
using SummedGradients = std::vector<std::vector<BlockGradients::Tile>>;

// Everything a method may touch when it makes a block.
struct BlockTask : BlockSite {
  const Checkpoint& checkpoint;  // what the weights were read from, in its own types
  BlockWeights&
      weights;  // the original weights; the method may replace tensors as it goes, and writes into none of these
  // This rank's shards (parts_of_rank): the block's input on entry, its output on return. nullptr if not asked for.
  Activations* residual;     // of the quantized stream
  Activations* original;     // of the full-precision stream
  ActivationBudget& budget;  // for activations inside the block
  // Of the device: what a forward pass may save for its backward pass. Beyond that it is computed again, with the same bits.
  std::size_t saved_activation_bytes;
  const nlohmann::json& decision;  // what decide() returned; null if the method does not decide
  // Where the method makes something of them, and then weights are left as they are: other methods are given them after it.
  const SummedGradients* gradients = nullptr;
  // For methods that work on one block for many minutes; nullptr: nothing is kept of a block that is not finished.
  BlockProgress* progress = nullptr;
  std::span<const LinearOverride> overrides = {};  // of the recipe
  int committer = 0;                               // the rank of the team that gets the whole block
  // Where recipes go through the block beside this one, the block's output of the full-precision stream is theirs, too: it belongs
  // here, or is here already, and `original` stays as it is. nullptr: in place of it.
  Activations* original_output = nullptr;
  bool original_made = false;    // it is here
  BlockShare* shared = nullptr;  // with others of the method; nullptr: there are none

  bool commits() const { return team.rank() == committer; }
  bool makes_original() const { return original != nullptr && !original_made; }
  Activations& output_of_original() const { return original_output ? *original_output : *original; }
  // What becomes of a linear of which the method would make `usual`; and whether it is to stay as it is.
  LinearScheme scheme_of(std::size_t linear, const LinearScheme& usual) const {
    return roundhouse::scheme_of(overrides, decoder, block, linear, usual);
  }
  bool skips(std::size_t linear) const { return is_skipped(overrides, decoder, block, linear); }
};

// A block of which nothing is quantized: its linears as they are, its output in the streams that are there. Collective over the team.
bool skips_all(const BlockTask& task);
QuantizedBlock keep_block(BlockTask& task);

class Method {
 public:
  virtual ~Method() = default;
  virtual Needs needs() const = 0;
  // Why it does not make this one of kOuterLinears; "": it does.
  virtual std::string cannot_include(const std::string& outer_linear) const;
  // Everything that a linear of the model may become: at least one.
  virtual std::vector<LinearScheme> schemes() const = 0;
  // Throws InputError if the method cannot do what is asked of it with these overrides of this model. Before any work.
  virtual void check(const DecoderBlock& decoder, int blocks,
                     std::span<const LinearOverride> overrides) const;
  // Whether linears with a common input (q, k, v; gate, up), which engines fuse, always become the same of these.
  virtual bool one_scheme_an_input() const;
  // Collective over all ranks, once a recipe, before the first block and only where needs().decision: what holds for the whole
  // model, such as the bits of each linear. An object, the same on every rank and on any number of them; it is committed to the
  // run's store, and whoever resumes reads it there.
  virtual nlohmann::json decide(ModelTask& task) const;
  // Collective over the team, where needs().gradients asks for statistics: those of one block. An object, at the team's rank 0 (others
  // may return null); the same bits on any number of ranks.
  virtual nlohmann::json statistics(BlockTask& task) const;
  // Recipes whose methods say the same here have the same statistics, which are then made once.
  virtual std::string statistics_settings() const;
  // Of one block and so many samples, all of `length` tokens, on a device that computes in this type: for estimates of time. Nothing
  // where a method does not know. `made`: what other recipes have made before.
  virtual BlockCost cost(const DecoderBlock& decoder, int samples, int length, DType activations,
                         MadeBefore made = {}) const;
  // Collective over the team; not called for blocks of which the recipe skips all. Returns the whole block at the task's committer
  // (elsewhere: only block and record may be set); but for "phases", seconds, with the same bits whichever rank that is.
  // Leaves the output of the *quantized* block in `residual` and that of the original block in output_of_original(), as far as it
  // asked for them and makes_original(), with the bits that DecoderBlock::forward() with those weights would give. Where the numbers allow no result it throws
  // UnquantizableError (base/numerical_error.h), as decide() and statistics() do, on all ranks alike: the run then goes on without the recipe.
  virtual QuantizedBlock quantize(BlockTask& task) const = 0;
};

}  // namespace roundhouse
