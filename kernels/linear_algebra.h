// Dense linear algebra. Every result has the same bits for any number of threads: threads share fixed tiles, none
// splits an inner dimension. Matrices may be empty (no rows, or an inner dimension of 0, which gives zeros).
#pragma once

#include "kernels/memory.h"

namespace roundhouse {

// c = alpha * op(a) op(b) + beta * c.  op(a) is [m, k], op(b) is [k, n], c is [m, n].
// F32 everywhere, or (on a GPU) 16-bit a and b; sums are in F32. beta == 0 overwrites (c may hold NaN).
// A CPU that was made for it rounds a and b to BF16 `of_activations`, and those of Linear and Gram: of large products, whose
// sums stay in F32.
struct Matmul {
  ConstMatrix a;
  bool transpose_a = false;
  ConstMatrix b;
  bool transpose_b = false;
  Matrix c;
  float alpha = 1.0f;
  float beta = 0.0f;
  // The factors are what a GPU has in 16 bits; alpha is 1, beta 0 or 1.
  bool of_activations = false;
};

// y = x wᵀ + bias (+ y when accumulate).  x [t, k], w [n, k], bias [1, n] or empty, y [t, n].
struct Linear {
  ConstMatrix x;
  ConstMatrix w;
  ConstMatrix bias;
  Matrix y;
  bool accumulate = false;

  bool has_bias() const { return bias.data != nullptr && bias.cols > 0; }
};

// The lower triangle of h += xᵀ x.  x [t, k], h [k, k] in F32. The strict upper triangle is left as it is.
// Rows of x are added in order, in slabs of a fixed height.
struct Gram {
  ConstMatrix x;
  Matrix h;
};

// In place, lower triangle only: a = L Lᵀ, L overwrites a's lower triangle; the strict upper triangle is set to 0.
struct Cholesky {
  Matrix a;  // [n, n] F32
};

// In place: the inverse of a lower triangular matrix with a non-zero diagonal. The strict upper triangle is not read and
// comes out 0.
struct TriangularInverse {
  Matrix l;  // [n, n] F32
};

// to[i, j] = from[rows[i], cols[j]]; where an index is -1: 0.  Not in place.
struct Gather {
  ConstMatrix from;  // F32 or U8
  ConstMatrix rows;  // [1, to.rows] I32, each in [-1, from.rows), or empty: 0, 1, 2, ...
  ConstMatrix cols;  // [1, to.cols], the same for columns
  Matrix to;         // the type of `from`
};

// into = the sum of `from`, or `into` += it: ((0 + 1) + (2 + 3)), or as much of that as there is, element by element in F32. All of one
// shape; `into` may be from[0] itself.
struct AddUp {
  static constexpr int kMost = 4;
  ConstMatrix from[kMost];
  int count;  // 1 to kMost
  bool accumulate = false;
  Matrix into;
};

class LinearAlgebra {
 public:
  virtual ~LinearAlgebra() = default;
  void matmul(const Matmul& op);
  void linear(const Linear& op);
  void gram(const Gram& op);
  // False if a leading minor is not positive (or a value is not finite); `a` is then unspecified.
  [[nodiscard]] bool cholesky(const Cholesky& op);
  void triangular_inverse(const TriangularInverse& op);
  // Mirrors the lower triangle to the upper one.
  void symmetrize(Matrix h);
  // to[i, j] = from[n-1-i, n-1-j].  Not in place.
  void reverse(ConstMatrix from, Matrix to);
  // into += from, same shape, F32.
  void add(ConstMatrix from, Matrix into);
  void add_up(const AddUp& op);
  void scale(float factor, Matrix m);  // m *= factor, F32
  void gather(const Gather& op);

 private:
  virtual void run(const Matmul& op) = 0;
  virtual void run(const Linear& op) = 0;
  virtual void run(const Gram& op) = 0;
  virtual bool run(const Cholesky& op) = 0;
  virtual void run(const TriangularInverse& op) = 0;
  virtual void run_symmetrize(Matrix h) = 0;
  virtual void run_reverse(ConstMatrix from, Matrix to) = 0;
  virtual void run(const AddUp& op) = 0;
  virtual void run_scale(float factor, Matrix m) = 0;
  virtual void run(const Gather& op) = 0;
};

}  // namespace roundhouse
