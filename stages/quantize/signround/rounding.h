// What SignRound learns about one block: for every weight an offset to its rounding, for every group how far its range is used
// (kernels/learned_rounding.h). Cut by rows into tiles (tiles.h); tile t of a linear belongs to rank t % team.size(), which holds
// its parameters, sums its gradients, steps it, and keeps its best codes.
//
// Memory of a rank of R, in bytes a weight: the original and the rounded weights whole, 2 or 4 each; 4 / R for the offsets; 1 / R
// for the codes kept; and for gradients 4 times the partial sums that are alive: log2(parts) + 1 at most on one rank, two where
// every rank has one part.
#pragma once

#include <memory>
#include <vector>

#include "comm/tree_sum.h"
#include "stages/quantize/method.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {

// The tiles of a block's linears, linear by linear.
struct RowTile {
  int linear;
  std::int64_t first;  // row
  std::int64_t rows;
  int owner;  // rank
};
std::vector<RowTile> tiles_of_linear(const LinearSpec& spec, int linear, int ranks);

// dL/dW of a block, summed over the parts of one batch in a fixed tree.
class BatchGradient {
 public:
  BatchGradient(const BlockTask& task, int parts);
  // Of this rank's parts, in order; each linear once a part.
  void add(int part, int linear, Tensor gradient);
  // Collective, once a linear: the sum on this rank's tiles, in order; for the others, nullptr.
  struct Tile {
    ConstMatrix rows;
    std::unique_ptr<Summand> memory;  // nullptr: another rank's
  };
  std::vector<Tile> finish(int linear);

 private:
  const BlockTask& task_;
  std::vector<std::vector<RowTile>> tiles_;  // by linear
  std::vector<std::vector<TreeSum>> sums_;   // by linear and tile
};

class LearnedBlock {
 public:
  // Takes the original weights out of the task and leaves room for rounded ones. Throws Error naming linear, row and columns
  // for weights without a grid.
  LearnedBlock(BlockTask& task, const LinearScheme& scheme);
  ~LearnedBlock();

  // Collective: the weights as they are rounded now, whole, into the task's weights.
  void round();
  // Collective: one step down the gradient (which it uses up).
  void step(BatchGradient gradient, float rate, float range_rate);
  // Keeps the codes of the last round(). They replace what was kept before.
  void keep();
  // Collective: the linears as kept, and their dequantized weights in the task. Frees the rest. Record of a linear: "error" and
  // "relative_error" as in rtn.h.
  std::vector<QuantizedLinear> finish();

 private:
  struct Tile;
  BlockTask& task_;
  LinearScheme scheme_;
  std::vector<Tensor> original_;
  std::vector<std::vector<std::unique_ptr<Tile>>>
      tiles_;  // by linear and tile; nullptr: another rank's
};

}  // namespace roundhouse
