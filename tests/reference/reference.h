// Every kernel once more, plainly and in double precision: what the backends are compared with.
// Read these, not the fast ones, to know what a kernel means. Matrices are dense, row-major
// vectors.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/grid.h"
#include "kernels/transformer.h"

namespace roundhouse::reference {

struct Matrix {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<double> values;

  Matrix() = default;
  Matrix(std::int64_t r, std::int64_t c)
      : rows(r), cols(c), values(static_cast<std::size_t>(r * c), 0.0) {}
  double& operator()(std::int64_t i, std::int64_t j) { return values[i * cols + j]; }
  double operator()(std::int64_t i, std::int64_t j) const { return values[i * cols + j]; }
};

Matrix transpose(const Matrix& a);
Matrix product(const Matrix& a, const Matrix& b);
Matrix cholesky(const Matrix& a);  // L, zeros above the diagonal; reads the lower triangle
Matrix triangular_inverse(const Matrix& l);  // of a lower triangle

Matrix rms_norm(const Matrix& x, const Matrix& weight, double epsilon, double offset = 0.0);
Matrix layer_norm(const Matrix& x, const Matrix& weight, const Matrix& bias, double epsilon);
Matrix rope(const Matrix& x, const Matrix& cos, const Matrix& sin, std::int64_t heads,
            std::int64_t length);
Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, std::int64_t heads,
                 std::int64_t kv_heads, std::int64_t length, std::int64_t window, double scale,
                 double score_cap = 0.0);
Matrix gated_product(const Matrix& gate, const Matrix& up,
                     GateFunction function = GateFunction::kSilu);
Matrix soft_cap(const Matrix& x, double cap);
Matrix relu(const Matrix& x);
std::vector<double> cross_entropy(const Matrix& logits, const std::vector<std::int32_t>& target);
std::vector<std::int64_t> largest_columns(const Matrix& logits);  // the first of equal ones
// sum p ln(p / q) of each row, p and q being the softmax of a and b.
std::vector<double> divergences(const Matrix& a, const Matrix& b);

// The scale before it is rounded to float16, and the zero point for the scale given.
double exact_scale(Grid grid, int bits, double lo, double hi);
int zero_for(Grid grid, int bits, double lo, double hi, double scale);

// Codes and errors of a panel of GPTQ, one row at a time, in the order of the paper's algorithm 1.
struct Panel {
  std::vector<std::uint8_t> codes;
  Matrix errors;
  std::vector<double> loss;
};
Panel gptq_panel(const Matrix& w, const Matrix& u, int bits, const Matrix& scales,
                 const Matrix& zeros);

}  // namespace roundhouse::reference
