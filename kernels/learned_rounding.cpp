// Operands are checked here, once for every device.
#include "kernels/learned_rounding.h"

#include "kernels/operands.h"

namespace roundhouse {
namespace {

void check_parameters(const LearnedRounding& r) {
  const std::int64_t groups = groups_of(r.w.cols, r.group_size);
  require(r.grid == Grid::kAsymAutoRound || r.grid == Grid::kSymFull,
          "rounding is learned on the grids A-ar and S-full");
  require(1 <= r.bits && r.bits <= 8, "a grid has 1 to 8 bits");
  require(has_shape(r.v, r.w.rows, r.w.cols, DType::kF32),
          "learned rounding: v has another shape or type");
  for (const ConstMatrix& m : {r.lo, r.hi, ConstMatrix(r.alpha), ConstMatrix(r.beta)}) {
    require(has_shape(m, r.w.rows, groups, DType::kF32),
            "learned rounding: lo, hi, alpha or beta has another shape or type");
  }
}

}  // namespace

void LearnedRoundingKernels::find_ranges(const FindRanges& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  require(1 <= op.bits && op.bits <= 8, "a grid has 1 to 8 bits");
  require(has_shape(op.lo, op.w.rows, groups, DType::kF32) &&
              has_shape(op.hi, op.w.rows, groups, DType::kF32),
          "find_ranges: lo or hi has another shape or type");
  if (op.w.rows > 0 && groups > 0) run(op);
}

void LearnedRoundingKernels::round_learned(const RoundLearned& op) {
  const LearnedRounding& r = op.rounding;
  check_parameters(r);
  const std::int64_t groups = groups_of(r.w.cols, r.group_size);
  require(op.values.data == nullptr || alike(op.values, r.w),
          "round_learned: values have another shape or type");
  require(op.codes.data == nullptr || (has_shape(op.codes, r.w.rows, r.w.cols, DType::kU8) &&
                                       has_shape(op.scales, r.w.rows, groups, DType::kF32) &&
                                       has_shape(op.zeros, r.w.rows, groups, DType::kU8)),
          "round_learned: codes, scales or zeros have another shape or type");
  if (groups > 0) run(op);
}

void LearnedRoundingKernels::learn_rounding(const LearnRounding& op) {
  check_parameters(op.rounding);
  require(has_shape(op.gradient, op.rounding.w.rows, op.rounding.w.cols, DType::kF32),
          "learn_rounding: the gradient has another shape or type");
  if (op.rounding.w.cols > 0) run(op);
}

}  // namespace roundhouse
