// Sums over the calibration samples that have the same bits on any number of ranks: each shard has a sum of its own, made by
// the rank that holds it in the order of its micro-batches, and shards are added in the fixed tree of comm/tree_sum.h.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/tree_sum.h"
#include "kernels/backend.h"
#include "stages/flow/block_site.h"
#include "stages/flow/matrix_sum.h"

namespace roundhouse {

// An F32 matrix in the backend's memory, in bands of rows: each is summed at a rank of its own, in turns, and all go from there to
// who wants the whole. So a rank receives each element about twice, however many ranks there are, and adds its share.
class ShardMatrixSum {
 public:
  // kLowerTriangle: above the diagonal it may be anything (what Gram adds to), and little of that is sent.
  enum class Part { kWhole, kLowerTriangle };
  ShardMatrixSum(Transport& device_team, Backend& backend, int shards, std::int64_t rows,
                 std::int64_t cols, Part part);
  ~ShardMatrixSum();

  // Bytes of each band. The first is summed at the owner, the next at the next rank.
  static std::vector<double> bands(std::int64_t rows, std::int64_t cols, Part part);

  // This rank's shards in order.
  void begin_shard();  // the shard's sum is zero
  Matrix matrix();     // of the shard at hand: to add to
  void end_shard(int shard);

  Tensor finish(int owner);  // collective: the whole sum at `owner`, empty elsewhere

 private:
  std::shared_ptr<Tensor> memory();  // of one sum, not initialised
  Transport& team_;
  Backend& backend_;
  std::int64_t rows_, cols_;
  Part part_;
  std::vector<Tensor> spare_;      // before everything that gives its memory back to it
  std::vector<TreeSum> bands_;     // sums of each
  std::shared_ptr<Tensor> shard_;  // the sum of the one at hand
};

// A few doubles in host memory.
class ShardNumberSum {
 public:
  ShardNumberSum(const BlockSite& site, std::size_t count);

  void add(int shard, std::vector<double> numbers);  // of this rank's shards in order, each once
  std::vector<double> finish();                      // collective: the whole sum, on every rank

 private:
  class Sum;
  Communicator& team_;
  std::size_t count_;
  TreeSum tree_;
};

}  // namespace roundhouse
