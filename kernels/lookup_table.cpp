// Operands are checked here, once for every device.
#include "kernels/lookup_table.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>
#include <string>

#include "base/numerical_error.h"
#include "base/random.h"
#include "kernels/operands.h"
#include "kernels/row_clusters.h"

namespace roundhouse {

void LookupTableKernels::cluster_rows(const ClusterRows& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  require(1 <= op.bits && op.bits <= 4, "cluster_rows: a lookup table has 1 to 4 bits");
  require(op.steps >= 0, "cluster_rows: steps are not negative");
  require(op.w.type == DType::kF32 && alike(op.sensitivity, op.w),
          "cluster_rows: w or sensitivity has another shape or type");
  require(has_shape(op.tables, rows, std::int64_t{1} << op.bits, DType::kF32),
          "cluster_rows: tables have another shape or type");
  require(has_shape(op.codes, rows, cols, DType::kU8),
          "cluster_rows: codes have another shape or type");
  require(op.rows.size() == static_cast<std::size_t>(rows), "cluster_rows: one report a row");
  require(cols <= std::numeric_limits<int>::max() / 2,
          "cluster_rows: a row has less than 2^30 columns");
  if (rows == 0) return;
  require(cols > 0, "cluster_rows: a row has at least one column");
  run(op);
}

void LookupTableKernels::dequantize_table(const DequantizeTable& op) {
  require(same_shape(op.w, op.codes) && op.codes.type == DType::kU8,
          "dequantize_table: codes or w have another shape or type");
  require(op.tables.rows == op.codes.rows && op.tables.type == DType::kF32 && op.tables.cols > 0,
          "dequantize_table: tables have another shape or type");
  check_sparse(op.sparse, op.codes.rows);
  if (op.codes.rows > 0 && op.codes.cols > 0) run(op);
}

std::vector<double> cluster_draws(std::uint64_t seed, int clusters) {
  Random random(seed);
  std::vector<double> draws(static_cast<std::size_t>(kClusterStarts * draws_of_start(clusters)));
  for (double& draw : draws) draw = random.uniform();
  return draws;
}

void refuse_row(std::int64_t row, const float* w, const float* sensitivity, std::int64_t cols) {
  for (std::int64_t column = 0; column < cols; ++column) {
    if (is_weight(w[column]) && is_sensitivity(sensitivity[column])) continue;
    std::ostringstream what;
    what << "row " << row << ", column " << column << ": ";
    if (!is_sensitivity(sensitivity[column])) {
      what << "the sensitivity is " << sensitivity[column]
           << ", and has to be finite and not negative";
    } else {
      what << "the weight is " << w[column]
           << ", which float16, the type of lookup tables, cannot hold";
    }
    throw NumericalError(what.str());
  }
  require(false, "a row was refused that has nothing wrong");
  std::abort();
}

}  // namespace roundhouse
