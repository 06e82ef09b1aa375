// Operands are checked here, once for every device.
#include "kernels/quantization.h"

#include "kernels/operands.h"

namespace roundhouse {
namespace {

void check_bits(int bits) { require(1 <= bits && bits <= 8, "a grid has 1 to 8 bits"); }

void check_grids(const ConstMatrix& scales, const ConstMatrix& zeros, std::int64_t rows,
                 std::int64_t groups) {
  require(has_shape(scales, rows, groups, DType::kF32), "scales have another shape or type");
  require(has_shape(zeros, rows, groups, DType::kU8), "zeros have another shape or type");
}

}  // namespace

void QuantizationKernels::find_grid(const FindGrid& op) {
  check_bits(op.bits);
  require(op.w.type == DType::kF32, "find_grid: weights are F32");
  require(0 <= op.clip.steps && op.clip.steps <= 100, "a clip search has 0 to 100 steps");
  check_grids(op.scales, op.zeros, op.w.rows, groups_of(op.w.cols, op.group_size));
  if (op.w.rows > 0 && op.w.cols > 0) run(op);
}

void QuantizationKernels::round_to_grid(const RoundToGrid& op) {
  check_bits(op.bits);
  check_grids(op.scales, op.zeros, op.w.rows, groups_of(op.w.cols, op.group_size));
  require(op.w.type == DType::kF32 && has_shape(op.codes, op.w.rows, op.w.cols, DType::kU8),
          "round_to_grid: codes or w have another shape or type");
  run(op);
}

// Whether each column's group is there is for the device that can read them.
void QuantizationKernels::dequantize(const Dequantize& op) {
  require(same_shape(op.w, op.codes) && op.codes.type == DType::kU8,
          "dequantize: codes or w have another shape or type");
  if (op.gathered()) {
    require(has_shape(op.group_of_column, 1, op.codes.cols, DType::kI32),
            "dequantize: group_of_column has another shape or type");
  }
  check_grids(op.scales, op.zeros, op.codes.rows,
              op.gathered() ? op.scales.cols : groups_of(op.codes.cols, op.group_size));
  run(op);
}

void QuantizationKernels::gptq_panel(const GptqPanel& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  check_bits(op.bits);
  require(op.w.type == DType::kF32, "gptq_panel: w is not F32");
  require(has_shape(op.u, cols, cols, DType::kF32), "gptq_panel: u has another shape or type");
  check_grids(op.scales, op.zeros, rows, cols);
  require(
      has_shape(op.codes, rows, cols, DType::kU8) && has_shape(op.errors, rows, cols, DType::kF32),
      "gptq_panel: codes or errors have another shape or type");
  require(has_shape(op.row_loss, rows, 1, DType::kF32),
          "gptq_panel: row_loss has another shape or type");
  run(op);
}

void QuantizationKernels::row_errors(const RowErrors& op) {
  require(op.w.type == DType::kF32, "row_errors: w is F32");
  require(has_shape(op.sums, op.w.rows, 1, DType::kF32),
          "row_errors: sums have another shape or type");
  require(op.value.data == nullptr || alike(op.value, op.w),
          "row_errors: the values have another shape or type");
  require(
      op.column_weights.data == nullptr || has_shape(op.column_weights, 1, op.w.cols, DType::kF32),
      "row_errors: the column weights have another shape or type");
  run(op);
}

}  // namespace roundhouse
