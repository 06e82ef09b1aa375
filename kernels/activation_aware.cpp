// Operands are checked here, once for every device.
#include "kernels/activation_aware.h"

#include "kernels/operands.h"

namespace roundhouse {

void ActivationAwareKernels::column_magnitudes(const ColumnMagnitudes& op) {
  require(has_shape(op.sums, 1, op.x.cols, DType::kF32), "column_magnitudes: one sum a column");
  run(op);
}

void ActivationAwareKernels::compare_rows(const CompareRows& op) {
  require(same_shape(op.a, op.b), "compare_rows: shapes differ");
  require(has_shape(op.sums, op.a.rows, 1, DType::kF32), "compare_rows: one sum a row");
  run(op);
}

void ActivationAwareKernels::scaled_rounding(const ScaledRounding& op) {
  require(same_shape(op.out, op.w), "scaled_rounding: shapes differ");
  require(has_shape(op.column_scales, 1, op.w.cols, DType::kF32),
          "scaled_rounding: one scale a column");
  if (groups_of(op.w.cols, op.group_size) > 0) run(op);
}

void ActivationAwareKernels::fold_scales(const FoldScales& op) {
  require(op.w.type == DType::kF32, "fold_scales: w is F32");
  require(op.column_factors.cols == 0 || has_shape(op.column_factors, 1, op.w.cols, DType::kF32),
          "fold_scales: one factor a column");
  require(op.row_divisors.cols == 0 || has_shape(op.row_divisors, 1, op.w.rows, DType::kF32),
          "fold_scales: one divisor a row");
  run(op);
}

void ActivationAwareKernels::group_grams(const GroupGrams& op) {
  require(op.group_size > 0 && has_shape(op.grams, op.x.cols, op.group_size, DType::kF32),
          "group_grams: grams have another shape or type");
  run(op);
}

void ActivationAwareKernels::clip_groups(const ClipGroups& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  const std::int64_t groups = groups_of(cols, op.group_size);
  require(op.w.type == DType::kF32, "clip_groups: w is F32");
  require(op.candidates >= 1 && op.candidates <= 255 && op.candidates <= op.divisions,
          "clip_groups: 1 to 255 candidates, all with a positive bound");
  require(has_shape(op.column_scales, 1, cols, DType::kF32), "clip_groups: one scale a column");
  require(has_shape(op.grams, cols, op.group_size, DType::kF32),
          "clip_groups: grams have another shape or type");
  require(has_shape(op.choices, rows, groups, DType::kU8),
          "clip_groups: choices have another shape or type");
  require(has_shape(op.errors, rows, 2 * groups, DType::kF32), "clip_groups: two errors a group");
  if (rows > 0 && groups > 0) run(op);
}

}  // namespace roundhouse
