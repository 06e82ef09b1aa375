// A method turns one block into quantized linears, with the whole team. Adding one: one file here, one line in the table of
// method.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "kernels/backend.h"
#include "model/block/decoder_block.h"
#include "model/checkpoint/checkpoint.h"
#include "model/quantized/quantized_linear.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/activations.h"
#include "stages/flow/monitor.h"
#include "stages/flow/streams.h"
#include "stages/quantize/options.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

// Everything a method may touch. Not owned. The same on every rank of the team, but for what the rank holds.
struct BlockTask {
  Backend& backend;
  Communicator& team;            // the ranks that share this block; moves host memory
  Transport& device_team;        // the same ranks; moves the backend's memory
  const Checkpoint& checkpoint;  // what the weights were read from, in its own types
  const DecoderBlock& shape;
  int block;               // which one
  BlockWeights& weights;   // the original weights; the method may replace them as it goes
  const Samples* samples;  // nullptr if the method asks for no stream
  // This rank's shards (parts_of_rank): the block's input on entry, its output on return. nullptr if not asked for.
  Activations* residual;     // of the quantized stream
  Activations* original;     // of the full-precision stream
  ActivationBudget& budget;  // for activations inside the block
  // Of the device: what a forward pass may save for its backward pass. Beyond that it is computed again, with the same bits.
  std::size_t saved_activation_bytes;
  Monitor& monitor;
};

class Method {
 public:
  virtual ~Method() = default;
  virtual Streams streams() const = 0;
  // Collective over the team. Returns the whole block at the team's rank 0 (elsewhere: only block and record may be set).
  // Leaves the output of the *quantized* block in `residual` and that of the original block in `original`, as far as it
  // asked for them, with the bits that DecoderBlock::forward() with those weights would give.
  virtual QuantizedBlock quantize(BlockTask& task) const = 0;
};

// Throws RecipeError: unknown method, wrong options. `options` is told every option it was given (for name and record).
std::unique_ptr<Method> make_method(const std::string& method, int bits, std::int64_t group_size,
                                    OptionReader& options);
std::unique_ptr<Method> make_method(const Recipe& recipe);

// Runs this rank's shards of one stream through the block with these weights, in place. With the dequantized weights of a
// finished block it leaves the same bits in the residual as quantize() did.
void run_forward(const BlockTask& task, const BlockWeights& weights, Activations& stream);

// A piece of a shard that goes through a block at once: consecutive samples. The cut is the problem's, never the machine's.
struct MicroBatch {
  int shard;
  std::int64_t first_sample;  // of all samples
  std::int64_t sequences;
  std::int64_t length;     // tokens a sequence
  std::int64_t first_row;  // within the shard

  std::int64_t rows() const { return sequences * length; }
};
std::vector<MicroBatch> micro_batches_of_shard(const Samples& samples, int shard);
PartRange shards_of_rank(const BlockTask& task);
// Rows of some activations, micro-batch by micro-batch of this rank in order, each copied to the device while the one before
// is worked on. What is stored meanwhile goes by store_behind(); finish_downloads() at the end.
class BatchReader {
 public:
  BatchReader(const BlockTask& task, std::vector<const Activations*> from);

  bool at_end() const { return at_ == batches_.size(); }
  const MicroBatch& batch() const { return batches_[at_]; }  // that next() is about to give
  std::vector<Tensor> next();                                // by `from`

 private:
  void load_ahead();

  const BlockTask& task_;
  std::vector<const Activations*> from_;
  std::vector<MicroBatch> batches_;
  std::size_t at_ = 0;
  std::vector<Activations::Loading> ahead_;  // of batches_[at_]
};

BlockState load_state(const BlockTask& task, const Activations& stream,
                      const MicroBatch& batch);  // residual only

BlockState state_of(const MicroBatch& batch, Tensor residual);

}  // namespace roundhouse
