// SignRound's learned rounding (Cheng et al. 2023, "Optimize Weight Rounding via Signed Gradient Descent for the
// Quantization of LLMs"). A weight w is rounded with an offset v, and the range [lo, hi] of a group is scaled by alpha below
// and beta above:
//
//   (s, z) = grid_point_of(grid, bits, alpha lo, beta hi)      code = clamp(rne(w / s + v) + z, 0, 2^bits - 1)
//   value = s (code - z)
//
// With v = 0 and alpha = beta = 1 that is round to nearest on the same grid. The gradient goes straight through rne(). With
// G = dL / d value, m = 1 where rne(w / s + v) + z is a code without clamping and else 0, D = code - z - m w / s - (1 - m) c:
//
//   dL/dv = G s m       dL/dalpha = sum (G D ds/dalpha + G (1 - m) c s / alpha)      dL/dbeta = sum G D ds/dbeta
//
//   grid     c                  ds/dalpha             ds/dbeta
//   A-ar     alpha lo / s       -lo / (2^bits - 1)    hi / (2^bits - 1)
//   S-full   0                  -lo / 2^(bits-1) if -alpha lo is the larger end      -hi / 2^(bits-1) if beta hi is
//
// (both where the ends are equal, as far as signs go), and ds = 0 where the grid's floor holds s. Sums run over a group.
// Rows are independent, so that they can be cut into shards. Groups as in kernels/quantization.h.
#pragma once

#include <cstdint>

#include "kernels/grid.h"
#include "kernels/memory.h"

namespace roundhouse {

// lo = min(0, min w), hi = max(0, max w) of each group. Throws Error naming row and columns if a weight is not finite or the
// group's scale (at alpha = beta = 1, where it is largest) exceeds float16.
struct FindRanges {
  ConstMatrix w;
  std::int64_t group_size;
  Grid grid;
  int bits;
  Matrix lo;  // [rows, groups] F32
  Matrix hi;
};

// What is rounded, and the learned parameters.
struct LearnedRounding {
  ConstMatrix w;  // [rows, cols] in the activation type
  std::int64_t group_size;
  Grid grid;  // kAsymAutoRound or kSymFull
  int bits;
  ConstMatrix lo;  // [rows, groups] F32, from FindRanges
  ConstMatrix hi;
  Matrix v;      // [rows, cols] F32
  Matrix alpha;  // [rows, groups] F32, in [0, 1]
  Matrix beta;
};

// Each result may be empty. Codes, scales and zeros are those of the values: Dequantize gives the same bits.
struct RoundLearned {
  const LearnedRounding& rounding;  // not changed
  Matrix values;                    // [rows, cols] in the activation type
  Matrix codes;                     // [rows, cols] U8; with scales and zeros or not at all
  Matrix scales;                    // [rows, groups] F32, each exactly a float16
  Matrix zeros;                     // [rows, groups] U8
};

// One step of signed gradient descent: v -= rate sign(dL/dv), and alpha, beta -= range_rate sign(..), clamped to [0, 1].
// sign(0) = sign(NaN) = 0.
struct LearnRounding {
  const LearnedRounding& rounding;  // v, alpha and beta are updated
  ConstMatrix gradient;             // [rows, cols] F32: dL / d value
  float rate;
  float range_rate;  // 0: alpha and beta stay
};

class LearnedRoundingKernels {
 public:
  virtual ~LearnedRoundingKernels() = default;
  void find_ranges(const FindRanges& op);
  void round_learned(const RoundLearned& op);
  void learn_rounding(const LearnRounding& op);

 private:
  virtual void run(const FindRanges& op) = 0;
  virtual void run(const RoundLearned& op) = 0;
  virtual void run(const LearnRounding& op) = 0;
};

}  // namespace roundhouse
