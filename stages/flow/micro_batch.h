// The one loop in which sequences of tokens go through a block: micro-batch by micro-batch, each copied to the device while the one
// before is worked on.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "model/causal_lm.h"
#include "stages/flow/activations.h"
#include "stages/flow/block_site.h"

namespace roundhouse {

// A piece of a shard that goes through a block at once: consecutive sequences. The cut is the problem's, never the machine's.
struct MicroBatch {
  int shard;
  std::int64_t first_sample;  // of all samples
  std::int64_t sequences;
  std::int64_t length;     // tokens a sequence
  std::int64_t first_row;  // within the shard

  std::int64_t rows() const { return sequences * length; }
};
std::vector<MicroBatch> micro_batches_of_shard(const Samples& samples, int shard);
PartRange shards_of_rank(const BlockSite& site);
std::vector<MicroBatch> micro_batches_of_rank(const BlockSite& site);

BlockState state_of(const MicroBatch& batch, Tensor residual);

// Rows of some activations, micro-batch by micro-batch in order. What is stored meanwhile goes by store_behind();
// finish_downloads() at the end.
class BatchReader {
 public:
  BatchReader(std::vector<MicroBatch> batches, std::vector<const Activations*> from,
              Backend& backend);

  bool at_end() const { return at_ == batches_.size(); }
  const MicroBatch& batch() const { return batches_[at_]; }  // that next() is about to give
  std::vector<Tensor> next();                                // by `from`

 private:
  void load_ahead();

  std::vector<MicroBatch> batches_;
  std::vector<const Activations*> from_;
  Backend& backend_;
  std::size_t at_ = 0;
  std::vector<Activations::Loading> ahead_;  // of batches_[at_]
};

// What a walk over the micro-batches of this rank's shards does. All of it in order.
struct BatchWalk {
  std::function<void(int shard)> begin = {};  // before a shard's first
  std::function<void(const MicroBatch& batch, std::vector<Tensor> rows)> visit;  // rows: by `from`
  std::function<void(int shard)> end = {};                                       // after its last
};
// Stores of a visit go by store_behind(): finish_downloads() afterwards.
void for_each_micro_batch(const BlockSite& site, std::vector<const Activations*> from,
                          const BatchWalk& walk);

// The tokens of a shard, embedded: what goes into the first block, in each of these streams.
void embed_shard(const CausalLM& model, const Samples& samples, int shard,
                 const std::vector<Activations*>& into, Backend& backend, Monitor& monitor);

// Runs micro-batches of one stream through a block with these weights, from its input to its output: the same, or another with room
// for them.
void run_forward(const DecoderBlock& decoder, const BlockWeights& weights,
                 std::vector<MicroBatch> batches, const Activations& from, Activations& to,
                 Backend& backend, Monitor& monitor);
// This rank's shards; in place. With the dequantized weights of a finished block it leaves the same bits in the residual as
// Method::quantize() did.
void run_forward(const BlockSite& site, const BlockWeights& weights, Activations& stream);
void run_forward(const BlockSite& site, const BlockWeights& weights, const Activations& from,
                 Activations& to);

}  // namespace roundhouse
