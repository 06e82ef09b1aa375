// Weights as codes into a lookup table of their row (SqueezeLLM, Kim et al. 2024), and beside it, as a sparse matrix, those that
// are too large or too sensitive for one. Rows are independent of each other.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/memory.h"

namespace roundhouse {

struct ClusteredRow {
  double
      error;  // sum of sensitivity (w - table value)², in double; of plain squares if `unit_weights`
  std::int32_t unit_weights;  // 1: all sensitivities were 0, and each counted as 1
  std::int32_t
      few_values;  // 1: no more distinct weights than table entries, so all are kept as they are
};

// The table of 2^bits values of each row, and each weight's nearest, that make the sum of sensitivity (w - value)² small:
// k-means in one dimension. A row is sorted once; sums over any interval then come from prefix sums of s, s w and s w² in
// double, and a step of Lloyd's algorithm is 2^bits binary searches.
//
// By default the best of kClusterStarts runs, each from greedy k-means++ seeds (2 + ln k trials a seed, as scikit-learn does,
// which the authors use) and of at most `steps` steps. All rows draw the same random numbers, as the authors' do, so that a
// row's result does not depend on which rows lie beside it. With `exact`, the optimum by dynamic programming, in
// O(2^bits cols log cols).
//
// Weights whose sensitivity is 0 (those that go into the sparse part) count for nothing and have the nearest code all the same.
// Values are rounded to float16 at the end, and codes are the nearest of what is stored, the lower one of two that are equally
// near. Where a row has fewer distinct weights than the table has entries, its last entries repeat the largest.
// CPU and GPU give the same bits.
struct ClusterRows {
  ConstMatrix w;  // [rows, cols] F32, below 65520 in magnitude
  ConstMatrix
      sensitivity;  // [rows, cols] F32, finite and not negative: e.g. the diagonal of Fisher's information
  int bits;         // 1 to 4
  int steps = 50;
  bool exact = false;
  std::uint64_t seed = 0;
  Matrix tables;                 // [rows, 2^bits] F32, each exactly a float16, ascending
  Matrix codes;                  // [rows, cols] U8
  std::span<ClusteredRow> rows;  // on the host, one each
};
inline constexpr int kClusterStarts = 4;

// A sparse matrix in compressed rows; entries of row r are those from starts[r] to starts[r + 1], columns ascending.
// Without entries all three may be empty.
struct SparseRows {
  ConstMatrix starts;   // [1, rows + 1] I32
  ConstMatrix columns;  // [1, entries] I32
  ConstMatrix values;   // [1, entries] F32
};

// w = table[code], plus the sparse value where there is one, added in F32; w in any float type.
struct DequantizeTable {
  ConstMatrix codes;   // [rows, cols] U8
  ConstMatrix tables;  // [rows, entries] F32; a code beyond is an error
  SparseRows sparse;
  Matrix w;
};

class LookupTableKernels {
 public:
  virtual ~LookupTableKernels() = default;
  // Waits for the device. Throws Error that names row and column of a weight or sensitivity out of its range.
  void cluster_rows(const ClusterRows& op);
  void dequantize_table(const DequantizeTable& op);

 private:
  virtual void run(const ClusterRows& op) = 0;
  virtual void run(const DequantizeTable& op) = 0;
};

}  // namespace roundhouse
