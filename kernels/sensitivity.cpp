// Operands are checked here, once for every device.
#include "kernels/sensitivity.h"

#include <algorithm>

#include "kernels/operands.h"

namespace roundhouse {

void SensitivityKernels::rounding_products(const RoundingProducts& op) {
  require(op.gradient.type == DType::kF32 && same_shape(op.w, op.gradient),
          "rounding_products: gradient or w has another shape or type");
  require(op.widths.size() <= kMostRoundingWidths && op.sums.size() == op.widths.size(),
          "rounding_products: up to 4 widths, with sums for each");
  for (const RoundingWidth& width : op.widths) {
    require(1 <= width.bits && width.bits <= 8, "rounding_products: a grid has 1 to 8 bits");
    const std::int64_t groups = groups_of(op.w.cols, op.group_size);
    require(has_shape(width.scales, op.w.rows, groups, DType::kF32) &&
                has_shape(width.zeros, op.w.rows, groups, DType::kU8),
            "rounding_products: scales or zeros have another shape or type");
  }
  std::ranges::fill(op.sums, RoundingSums{});
  if (!op.widths.empty() && op.w.rows > 0 && op.w.cols > 0) run(op);
}

void SensitivityKernels::count_keys(const CountKeys& op) {
  require(op.x.type == DType::kF32, "count_keys: x is F32");
  require(1 <= op.bits && op.bits <= kMostKeyBits && 0 <= op.prefix_bits &&
              op.prefix_bits + op.bits <= 32 && std::uint64_t{op.prefix} >> op.prefix_bits == 0,
          "count_keys: a prefix and the bits after it are those of a key");
  require(op.counts.size() == std::size_t{1} << op.bits, "count_keys: one count for each value");
  if (op.x.rows > 0 && op.x.cols > 0) run(op);
}

void SensitivityKernels::count_large(const CountLarge& op) {
  require(
      op.w.type == DType::kF32 && (op.sensitivity.data == nullptr || alike(op.sensitivity, op.w)),
      "count_large: w or sensitivity has another shape or type");
  require(op.thresholds.size() <= kMostThresholds && op.counts.size() == op.thresholds.size() &&
              std::ranges::is_sorted(op.thresholds),
          "count_large: up to 64 ascending thresholds, with a count for each");
  if (!op.thresholds.empty() && op.w.rows > 0 && op.w.cols > 0) run(op);
}

void SensitivityKernels::remove_outliers(const RemoveOutliers& op) {
  require(op.w.type == DType::kF32 && alike(op.sensitivity, op.w),
          "remove_outliers: w or sensitivity has another shape or type");
  require(has_shape(op.removed, op.w.rows, op.w.cols, DType::kU8),
          "remove_outliers: removed has another shape or type");
  run(op);
}

}  // namespace roundhouse
