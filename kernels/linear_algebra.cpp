// Operands are checked here, once for every device.
#include "kernels/linear_algebra.h"

#include "kernels/operands.h"

namespace roundhouse {
namespace {

void check_square(const ConstMatrix& m, const char* what) {
  require(has_shape(m, m.rows, m.rows, DType::kF32), what);
}

// Whether each index is in range is for the device that can read them.
void check_index(const ConstMatrix& index, std::int64_t count, std::int64_t range) {
  if (index.data == nullptr || index.cols == 0) {
    require(count <= range, "gather: more rows or columns than there are");
  } else {
    require(has_shape(index, 1, count, DType::kI32), "gather: an index has another shape or type");
  }
}

}  // namespace

void LinearAlgebra::matmul(const Matmul& op) {
  const std::int64_t m = op.transpose_a ? op.a.cols : op.a.rows;
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  const std::int64_t n = op.transpose_b ? op.b.rows : op.b.cols;
  require((op.transpose_b ? op.b.cols : op.b.rows) == k, "matmul: inner dimensions differ");
  require(has_shape(op.c, m, n), "matmul: the result has another shape");
  require(op.a.type == op.b.type, "matmul: the factors differ in type");
  require(op.c.type == op.a.type || op.c.type == DType::kF32,
          "matmul: the result is F32 or of the factors' type");
  require(!op.of_activations || (op.alpha == 1.0f && (op.beta == 0.0f || op.beta == 1.0f)),
          "matmul: a product of activations is scaled");
  run(op);
}

void LinearAlgebra::linear(const Linear& op) {
  require(op.w.cols == op.x.cols, "linear: x and w differ in their inner dimension");
  require(has_shape(op.y, op.x.rows, op.w.rows), "linear: y has another shape");
  require(!op.has_bias() || has_shape(op.bias, 1, op.y.cols), "linear: bias has another shape");
  run(op);
}

void LinearAlgebra::gram(const Gram& op) {
  require(has_shape(op.h, op.x.cols, op.x.cols, DType::kF32), "gram: h has another shape or type");
  run(op);
}

bool LinearAlgebra::cholesky(const Cholesky& op) {
  check_square(op.a, "cholesky: the matrix is not square and F32");
  return op.a.rows == 0 || run(op);
}

void LinearAlgebra::triangular_inverse(const TriangularInverse& op) {
  check_square(op.l, "triangular_inverse: the matrix is not square and F32");
  if (op.l.rows > 0) run(op);
}

void LinearAlgebra::symmetrize(Matrix h) {
  check_square(h, "symmetrize: the matrix is not square and F32");
  run_symmetrize(h);
}

void LinearAlgebra::reverse(ConstMatrix from, Matrix to) {
  require(same_shape(from, to), "reverse: shapes differ");
  require(from.type == DType::kF32 && to.type == DType::kF32, "reverse: matrices are F32");
  run_reverse(from, to);
}

void LinearAlgebra::add(ConstMatrix from, Matrix into) {
  add_up({.from = {from}, .count = 1, .accumulate = true, .into = into});
}

void LinearAlgebra::add_up(const AddUp& op) {
  require(op.count >= 1 && op.count <= AddUp::kMost, "add: too many matrices at once");
  require(op.into.type == DType::kF32, "add: matrices are F32");
  for (int i = 0; i < op.count; ++i) {
    require(same_shape(op.from[i], op.into), "add: shapes differ");
    require(op.from[i].type == DType::kF32, "add: matrices are F32");
  }
  run(op);
}

void LinearAlgebra::scale(float factor, Matrix m) {
  require(m.type == DType::kF32, "scale: the matrix is F32");
  run_scale(factor, m);
}

void LinearAlgebra::gather(const Gather& op) {
  require(op.from.type == op.to.type && (op.to.type == DType::kF32 || op.to.type == DType::kU8),
          "gather: both matrices are F32, or both are U8");
  check_index(op.rows, op.to.rows, op.from.rows);
  check_index(op.cols, op.to.cols, op.from.cols);
  run(op);
}

}  // namespace roundhouse
