// Kernels of activation-aware weight quantization (AWQ; Lin et al. 2024): sums over activations, and weights rounded under a
// scaling of their columns or a clipping of their range.
//
// Weights and groups as in quantization.h. x, a, b and the weights of ScaledRounding may be in any float type of the device;
// arithmetic is in F32 and grids have float16 scales. Nothing throws because of values: a group that has no usable grid (NaN,
// or a scale beyond float16) rounds to NaN, so that the candidate it belongs to has no loss.
#pragma once

#include <cstdint>

#include "kernels/grid.h"
#include "kernels/memory.h"

namespace roundhouse {

// sums[k] += sum_t |x_tk|.  x [t, k], sums [1, k] F32.
struct ColumnMagnitudes {
  ConstMatrix x;
  Matrix sums;
};

// sums[i] = sum_j (a_ij - b_ij)², or with `product` sum_j a_ij b_ij.  a, b [rows, cols], sums [rows, 1] F32.
struct CompareRows {
  ConstMatrix a;
  ConstMatrix b;
  bool product = false;
  Matrix sums;
};

// out = Q(w diag(s)) diag(1/s), or with `error` that less w. Q rounds to nearest on the groups' grids.
struct ScaledRounding {
  ConstMatrix w;              // [rows, cols]
  ConstMatrix column_scales;  // s [1, cols] F32, positive and finite
  std::int64_t group_size;
  Grid grid;
  int bits;
  bool error = false;
  Matrix out;  // [rows, cols]
};

// w_ij = w_ij * column_factors_j / row_divisors_i in place: multiplied first. An empty vector stands for ones.
struct FoldScales {
  Matrix w;                    // [rows, cols] F32
  ConstMatrix column_factors;  // [1, cols] F32
  ConstMatrix row_divisors;    // [1, rows] F32
};

// For each group of columns g of x: its block of grams, [columns of g, columns of g], += x_gᵀ x_g, the whole square. The block
// is rows [g * group_size, ...) of grams, from column 0; columns of grams beyond a short group stay as they are.
struct GroupGrams {
  ConstMatrix x;  // [t, k]
  std::int64_t group_size;
  Matrix grams;  // [k, group_size] F32
};

// Clips each group of weights to [-m, m] in place, where m is, of the bounds max|w| (1 - j / divisions), j = 0 .. candidates - 1,
// the first with the least error Δ C Δᵀ: Δ_k = (Q(clamp(w, -m, m))_k - w_k) / s_k, C the group's Gram matrix of the inputs x;
// those of w are x_k / s_k. A candidate whose error is not a number is passed over.
struct ClipGroups {
  Matrix w;                   // [rows, cols] F32: the columns are multiplied with s
  ConstMatrix column_scales;  // s [1, cols] F32
  ConstMatrix grams;          // [cols, group_size] F32, as GroupGrams leaves them
  std::int64_t group_size;
  Grid grid;
  int bits;
  int candidates;  // llm-awq: 10
  int divisions;   // llm-awq: 20
  Matrix choices;  // [rows, groups] U8: j
  Matrix errors;   // [rows, 2 groups] F32: of each group the error without clipping, then the least
};

class ActivationAwareKernels {
 public:
  virtual ~ActivationAwareKernels() = default;
  void column_magnitudes(const ColumnMagnitudes& op);
  void compare_rows(const CompareRows& op);
  void scaled_rounding(const ScaledRounding& op);
  void fold_scales(const FoldScales& op);
  void group_grams(const GroupGrams& op);
  void clip_groups(const ClipGroups& op);

 private:
  virtual void run(const ColumnMagnitudes& op) = 0;
  virtual void run(const CompareRows& op) = 0;
  virtual void run(const ScaledRounding& op) = 0;
  virtual void run(const FoldScales& op) = 0;
  virtual void run(const GroupGrams& op) = 0;
  virtual void run(const ClipGroups& op) = 0;
};

}  // namespace roundhouse
