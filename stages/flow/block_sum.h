// Sums of matrices like the weights of a block, over numbered parts (batches, shards) that the ranks of a team hold: the same
// bits on any number of ranks. Cut by rows into tiles; tile t of a linear belongs to rank t % team.size(), which gets its sum.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "comm/tree_sum.h"
#include "stages/flow/block_site.h"

namespace roundhouse {

inline constexpr std::int64_t kTileRows = 256;

// The tiles of a block's linears, linear by linear.
struct RowTile {
  int linear;
  std::int64_t first;  // row
  std::int64_t rows;
  int owner;  // rank
};
std::vector<RowTile> tiles_of_linear(const LinearSpec& spec, int linear, int ranks);
std::vector<std::vector<RowTile>> tiles_of_block(const BlockSite& site);

// Parts are added in the fixed tree of comm/tree_sum.h, four at once: additions wait for memory, not for operations. Of a linear,
// log2(parts) + 4 partial sums at most are alive.
class BlockSum {
 public:
  static constexpr int kAddedAtOnce = 4;
  BlockSum(const BlockSite& site, int parts);
  // Of this rank's parts, in order; each linear once a part. F32 [rows, cols] of the linear.
  void add(int part, int linear, Tensor matrix);
  // Collective, once a linear: the sum on this rank's tiles, in order; for the others, nullptr.
  struct Tile {
    ConstMatrix rows;
    std::unique_ptr<Summand> memory;  // nullptr: another rank's
  };
  std::vector<Tile> finish(int linear);

 private:
  Backend& backend_;
  std::vector<std::vector<RowTile>> tiles_;  // by linear
  std::vector<std::vector<TreeSum>> sums_;   // by linear and tile
};

}  // namespace roundhouse
