// The grid point of a group with a learned range, and its slopes, for host and device code alike. See kernels/learned_rounding.h.
#pragma once

#include "kernels/grid_point.h"

namespace roundhouse {

struct LearnedPoint {
  float scale;
  int zero;
  float scale_by_alpha;  // ds/dalpha, ds/dbeta
  float scale_by_beta;
  float clipped;           // c
  float clipped_by_alpha;  // c s / alpha
};

// Precondition: lo <= 0 <= hi, grid is kAsymAutoRound or kSymFull.
ROUNDHOUSE_HD inline LearnedPoint learned_point_of(Grid grid, int bits, float lo, float hi,
                                                   float alpha, float beta) {
  const float low = alpha * lo, high = beta * hi;
  const GridPoint point = grid_point_of(grid, bits, low, high);
  const float smallest = nearest_half(1e-5f);  // the floor of both grids
  LearnedPoint learned{point.scale, point.zero, 0.0f, 0.0f, 0.0f, 0.0f};
  if (grid == Grid::kSymFull) {
    const float middle = static_cast<float>(1 << (bits - 1));
    if (nearest_half(fmaxf(-low, high) / middle) < smallest) return learned;
    if (-low > high) {
      learned.scale_by_alpha = -lo / middle;
    } else {
      learned.scale_by_beta = -hi / middle;
      if (-low == high) learned.scale_by_alpha = lo / middle;
    }
    return learned;
  }
  const float levels = static_cast<float>((1 << bits) - 1);
  learned.clipped = low / point.scale;
  learned.clipped_by_alpha = lo;
  if (nearest_half((high - low) / levels) < smallest) return learned;
  learned.scale_by_alpha = -lo / levels;
  learned.scale_by_beta = hi / levels;
  return learned;
}

}  // namespace roundhouse
