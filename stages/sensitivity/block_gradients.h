// What a walk through a whole model's gradients leaves of a block: sums over all sequences s of dL_s/dW, L_s being the mean
// cross-entropy of sequence s (CausalLM::loss_gradient). In F32, with the same bits on any number of ranks: sequences of a shard in
// order, shards in the fixed tree of comm/tree_sum.h. A linear's sums do not depend on which others are asked for. A sequence in which a
// linear's input or output gradient is not finite is left out of its sums.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/flow/block_sum.h"
#include "stages/sensitivity/gradient_sums.h"

namespace roundhouse {

// Memory of a rank, in bytes a weight and sum: 4 times the partial sums that are alive, log2(shards) + 4 at most.
class BlockGradients {
 public:
  BlockGradients(const BlockSite& site, GradientSums wanted);

  // Of this rank's shards, in order.
  void begin_shard();
  void add(int linear, const LinearGradient& gradient);  // of some whole sequences of the shard
  void end_shard(int shard);

  // Collective, before finish(): which samples were left out (stages/flow/dropped_samples.h). Throws UnquantizableError on every rank if
  // they are more than a tenth.
  nlohmann::json settle_dropped() const;
  // Collective, once a linear: the sums of this rank's rows. Those of one tile lie in one place or the other, [rows, cols].
  struct Tile {
    std::int64_t first;   // row of the linear
    ConstMatrix sum;      // empty: not asked for
    ConstMatrix squares;  // likewise
    std::unique_ptr<Summand> sum_memory, squares_memory;
  };
  std::vector<Tile> finish(int linear);

 private:
  // One of the two sums, of all linears.
  struct Kind {
    std::unique_ptr<BlockSum> over_shards;  // nullptr: not asked for
    std::vector<Tensor> of_shard;           // the one at hand, by linear

    Matrix band(int linear, std::int64_t begin, std::int64_t end);  // rows
  };

  BlockSite site_;
  Kind sum_, squares_;
  Tensor scratch_;  // the gradient of one sequence, some rows at a time
  struct Dropped {
    std::int64_t seen = 0;               // sequences of the shard at hand
    std::vector<std::int64_t> of_shard;  // of these
    std::vector<std::int64_t> samples;   // of the shards before
  };
  std::vector<Dropped> dropped_;  // by linear
};

}  // namespace roundhouse
