// The Hessian of one input group of a block, H = 2/n sum xᵀ x over its n finite samples, collected by the team.
//
// Each shard has its own Gram matrix, summed micro-batch by micro-batch; the shards are added in the fixed tree of
// comm/tree_sum.h; 2/n comes after the sum. So H has the same bits on any number of ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/tree_sum.h"
#include "kernels/backend.h"
#include "stages/quantize/method.h"
#include "stages/quantize/phase_clock.h"

namespace roundhouse {

class HessianCollector {
 public:
  HessianCollector(const BlockTask& task, int group, PhaseClock& clock);
  ~HessianCollector();

  // This rank's shards in order, and their micro-batches in order. A sample with a value that is not finite is left out.
  void begin_shard();
  void add(ConstMatrix input, const MicroBatch& batch);
  void end_shard(int shard);

  // Collective: H at owner(), symmetric, F32 [cols, cols], in the backend's memory; empty elsewhere. Adds what was left out to the block's record.
  // Throws Error on every rank if more than a tenth of the samples were.
  Tensor finish(nlohmann::json& block_record);
  int owner() const { return owner_; }

 private:
  class GramSum;
  std::int64_t settle_dropped(nlohmann::json& block_record);  // returns the number of samples used

  const BlockTask& task_;
  const InputGroup& group_;
  int owner_;
  PhaseClock& clock_;
  std::vector<Tensor> spare_;  // before everything that gives its memory back to it
  TreeSum sum_;
  std::unique_ptr<GramSum> gram_;  // of the shard at hand
  std::vector<std::int64_t> dropped_;
};

}  // namespace roundhouse
