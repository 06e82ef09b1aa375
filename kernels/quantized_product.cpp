// Operands are checked here, once for every device.
#include "kernels/quantized_product.h"

#include "kernels/operands.h"

namespace roundhouse {
namespace {

void check_packed(const ConstMatrix& packed, std::int64_t cols, int bits) {
  require(2 <= bits && bits <= 4, "packed codes have 2 to 4 bits");
  require(has_shape(packed, packed.rows, packed_words_of_row(cols, bits), DType::kU32),
          "packed codes have another shape or type");
}

template <class Product>
void check_product(const Product& op) {
  check_packed(op.packed, op.x.cols, op.bits);
  require(has_shape(op.y, op.x.rows, op.packed.rows, op.x.type),
          "a product of quantized weights: y has another shape or type");
}

}  // namespace

void QuantizedProductKernels::pack_codes(const PackCodes& op) {
  check_packed(op.packed, op.codes.cols, op.bits);
  require(op.codes.type == DType::kU8 && op.packed.rows == op.codes.rows,
          "pack_codes: codes have another shape or type");
  run(op);
}

void QuantizedProductKernels::multiply_uniform(const UniformProduct& op) {
  check_product(op);
  require(op.group_size % kPackedUnit == 0 || op.group_size >= op.x.cols,
          "a product of quantized weights: groups are multiples of 32 columns or whole rows");
  const std::int64_t groups = groups_of(op.x.cols, op.group_size);
  require(has_shape(op.scales, op.packed.rows, groups, DType::kF16) &&
              has_shape(op.zeros, op.packed.rows, groups, DType::kU8),
          "a product of quantized weights: scales or zeros have another shape or type");
  run(op);
}

void QuantizedProductKernels::multiply_table(const TableProduct& op) {
  check_product(op);
  require(has_shape(op.tables, op.packed.rows, std::int64_t{1} << op.bits, DType::kF32),
          "a product of quantized weights: tables have another shape or type");
  check_sparse(op.sparse, op.packed.rows);
  run(op);
}

}  // namespace roundhouse
