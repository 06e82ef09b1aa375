// What SignRound learns about one block: for every weight an offset to its rounding, for every group how far its range is used
// (kernels/learned_rounding.h). Cut by rows into tiles (block_sum.h); tile t of a linear belongs to rank t % team.size(), which holds
// its parameters, sums its gradients, steps it, and keeps its best codes.
//
// Memory of a rank of R, in bytes a weight: the original and the rounded weights whole, 2 or 4 each; 4 / R for the offsets; 1 / R
// for the codes kept; and for gradients 4 times the partial sums that are alive: log2(parts) + 2 at most on one rank, two where
// every rank has one part.
#pragma once

#include <memory>
#include <vector>

#include "stages/flow/block_sum.h"
#include "stages/quantize/method.h"
#include "stages/quantize/row_tiles.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// Those of the linears that are learned, by linear; none of one that stays as it is.
std::vector<std::vector<RowTile>> learned_tiles(const BlockTask& task);

class LearnedBlock {
 public:
  // `scheme`: of linears without one of their own (BlockTask::scheme_of). Takes the original weights out of the task and leaves room
  // for rounded ones; linears that stay as they are stay there. Throws Error naming linear, row and columns
  // for weights without a grid.
  LearnedBlock(BlockTask& task, const LinearScheme& scheme);
  ~LearnedBlock();

  // Collective: the weights as they are rounded now, whole, into the task's weights.
  void round();
  // Collective: one step down the gradient dL/dW of a batch (which it uses up).
  void step(BlockSum gradient, float rate, float range_rate);
  // Keeps the codes of the last round(). They replace what was kept before.
  void keep();
  // For BlockProgress: this rank's tiles, how many bytes they are at most, and what was learned of one, and back. Throws Error where it
  // does not fit.
  std::vector<RowTile> own_tiles() const;
  double bytes() const;
  Record save(const RowTile& at) const;
  void restore(const RowTile& at, const Record& record);
  // Collective: the linears as kept, and their dequantized weights in the task. Frees the rest. Record of a linear: "error" and
  // "relative_error" as in rtn.h.
  std::vector<QuantizedLinear> finish();

 private:
  struct Tile;
  struct Part {  // of what is saved of a tile
    const char* name;
    Tensor* tensor;
  };
  static std::vector<Part> parts_of(Tile& tile);
  Tile& tile_at(const RowTile& at) const;
  void make_room_to_keep(Tile& tile) const;

  BlockTask& task_;
  LinearScheme scheme_;
  std::vector<Tensor> original_;
  std::vector<std::vector<std::unique_ptr<Tile>>>
      tiles_;  // by linear and tile; nullptr: another rank's
};

}  // namespace roundhouse
