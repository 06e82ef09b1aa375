// The Hessian of one input group of a block, H = 2/n sum xᵀ x over its n finite samples, collected by the team.
//
// Gram matrices are summed as in shard_sum.h, and 2/n comes after the sum: H has the same bits on any number of ranks.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/flow/shard_sum.h"

namespace roundhouse {

// Bytes of the bands in which the ranks of a team sum it (stages/flow/shard_sum.h).
std::vector<double> hessian_bands(std::int64_t cols);

class HessianCollector {
 public:
  HessianCollector(const BlockSite& task, int group, PhaseClock& clock);

  // This rank's shards in order, and their micro-batches in order. A sample with a value that is not finite is left out.
  void begin_shard();
  void add(ConstMatrix input, const MicroBatch& batch);
  void end_shard(int shard);

  // Collective: H at owner(), symmetric, F32 [cols, cols], in the backend's memory; empty elsewhere. Adds what was left out to the block's record.
  // Throws Error on every rank if more than a tenth of the samples were.
  Tensor finish(nlohmann::json& block_record);
  int owner() const { return owner_; }

 private:
  const BlockSite& task_;
  const SharedInput& group_;
  int owner_;
  PhaseClock& clock_;
  ShardMatrixSum sum_;
  std::vector<std::int64_t> dropped_;
};

}  // namespace roundhouse
