// Kernels of weight quantization. All of them treat rows independently, so that rows can be cut into tiles.
// Weights are F32. A group is `group_size` consecutive columns of a row; the last one may be shorter.
// groups = ceil(cols / group_size).
#pragma once

#include <cstdint>

#include "kernels/grid.h"
#include "kernels/memory.h"

namespace roundhouse {

// Search for a smaller range than min..max (GPTQ's `mse`): for i in 0..steps-1 shrink both ends by p = 1 - i / 100
// and keep the first p with the least sum of |value - w|^norm.  steps == 0: no search.
struct ClipSearch {
  int steps = 0;  // GPTQ: 80
  float norm = 2.4f;
};

// One grid point for each (row, group).
struct FindGrid {
  ConstMatrix w;  // [rows, cols]
  std::int64_t group_size;
  Grid grid;
  int bits;
  ClipSearch clip;
  Matrix scales;  // [rows, groups] F32, each exactly a float16
  Matrix zeros;   // [rows, groups] U8
};

// Round to nearest on given grids; codes [rows, cols] U8.
struct RoundToGrid {
  ConstMatrix w;
  std::int64_t group_size;
  int bits;
  ConstMatrix scales;
  ConstMatrix zeros;
  Matrix codes;
};

// w = s (code - z), w in any float type. group_of_column: [1, cols] I32, or empty for column / group_size.
struct Dequantize {
  ConstMatrix codes;
  std::int64_t group_size;
  ConstMatrix scales;
  ConstMatrix zeros;
  ConstMatrix group_of_column;
  Matrix w;

  bool gathered() const { return group_of_column.data != nullptr && group_of_column.cols > 0; }
};

// GPTQ's inner loop over one panel of columns (Frantar et al. 2022, algorithm 1). For each column i of the panel in
// order: code and value q of w_i on the column's grid; e_i = (w_i - q) / u_ii; w_j -= e_i u_ij for the panel's columns
// j > i.  The caller updates the columns right of the panel by one matrix product: W -= errors U.
struct GptqPanel {
  Matrix w;       // [rows, panel]; the panel of the working weights, overwritten
  ConstMatrix u;  // [panel, panel] upper triangular; its diagonal block of U, H⁻¹ = Uᵀ U
  int bits;
  ConstMatrix scales;  // [rows, panel] F32: the grid of each column of the panel
  ConstMatrix zeros;   // [rows, panel] U8
  Matrix codes;        // [rows, panel] U8
  Matrix errors;       // [rows, panel] F32: e
  Matrix row_loss;     // [rows, 1] F32: += sum_i e_i² / 2
};

// sums[r] = sum_c d[c] (w[r, c] - value[r, c])² / 2, columns in order, in F64 and then rounded.
struct RowErrors {
  ConstMatrix w;               // [rows, cols] F32
  ConstMatrix value;           // the same, or empty: 0
  ConstMatrix column_weights;  // d, [1, cols] F32, or empty: 1
  Matrix sums;                 // [rows, 1] F32
};

class QuantizationKernels {
 public:
  virtual ~QuantizationKernels() = default;
  void find_grid(const FindGrid& op);
  void round_to_grid(const RoundToGrid& op);
  void dequantize(const Dequantize& op);
  void gptq_panel(const GptqPanel& op);
  void row_errors(const RowErrors& op);

 private:
  virtual void run(const FindGrid& op) = 0;
  virtual void run(const RoundToGrid& op) = 0;
  virtual void run(const Dequantize& op) = 0;
  virtual void run(const GptqPanel& op) = 0;
  virtual void run(const RowErrors& op) = 0;
};

}  // namespace roundhouse
