// Cholesky factor and triangular inverse by recursive halving, which turns nearly all work into
// large matrix products:
//   [A11    ]   [L11    ]      L11 = chol(A11),  L21 = A21 L11⁻ᵀ,  L22 = chol(A22 - L21 L21ᵀ)
//   [A21 A22] → [L21 L22]
//   [L11    ]⁻¹  [   L11⁻¹               ]
//   [L21 L22]  = [-L22⁻¹ L21 L11⁻¹  L22⁻¹]
// Halves end at multiples of kBlock. Blocks of that size are done in double.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"
#include "kernels/cpu/transpose.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kBlock = 64;
constexpr std::int64_t kSolveRows = 4 * kLanes;  // rows that a solve holds transposed
constexpr std::int64_t kStrip =
    128;  // rows (or columns) of one piece of a solve or a product in place

// The first half of n, a multiple of kBlock. Precondition: n > kBlock.
std::int64_t first_half(std::int64_t n) { return (n / 2 + kBlock - 1) / kBlock * kBlock; }

// A square part of the matrix.
struct Square {
  float* data;
  std::int64_t stride;
  std::int64_t n;

  float* at(std::int64_t row, std::int64_t col) const { return data + row * stride + col; }
  Square leading(std::int64_t size) const { return {data, stride, size}; }
  Square trailing(std::int64_t from) const { return {at(from, from), stride, n - from}; }
};

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] bool factor_block(
    const Square& a) {
  double column[kBlock][kBlock];  // column[j][i] is element (i, j): the updates run along columns
  for (std::int64_t i = 0; i < a.n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) column[j][i] = static_cast<double>(*a.at(i, j));
  }
  for (std::int64_t k = 0; k < a.n; ++k) {
    const double pivot = column[k][k];
    if (!(pivot > 0.0 && pivot <= std::numeric_limits<double>::max())) return false;
    const double root = std::sqrt(pivot);
    column[k][k] = root;
    for (std::int64_t i = k + 1; i < a.n; ++i) column[k][i] /= root;
    for (std::int64_t j = k + 1; j < a.n; ++j) {
      const double factor = column[k][j];
      for (std::int64_t i = j; i < a.n; ++i) column[j][i] -= factor * column[k][i];
    }
  }
  for (std::int64_t i = 0; i < a.n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) *a.at(i, j) = static_cast<float>(column[j][i]);
  }
  return true;
}

// x <- x L⁻ᵀ for at most kSolveRows rows of x, which are independent: they lie side by side in the
// vectors.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void solve_block(
    const Square& l, float* x, std::int64_t x_stride, std::int64_t rows) {
  float side[kBlock][kSolveRows] = {};
  transpose(x, x_stride, rows, l.n, side[0], kSolveRows);
  for (std::int64_t j = 0; j < l.n; ++j) {
    const float* const row = l.at(j, 0);
    Lanes* const target = reinterpret_cast<Lanes*>(side[j]);
    Lanes s0 = target[0], s1 = target[1], s2 = target[2], s3 = target[3];
    for (std::int64_t i = 0; i < j; ++i) {
      const Lanes* const solved = reinterpret_cast<const Lanes*>(side[i]);
      s0 -= solved[0] * row[i];
      s1 -= solved[1] * row[i];
      s2 -= solved[2] * row[i];
      s3 -= solved[3] * row[i];
    }
    target[0] = s0 / row[j];
    target[1] = s1 / row[j];
    target[2] = s2 / row[j];
    target[3] = s3 / row[j];
  }
  transpose(side[0], kSolveRows, l.n, rows, x, x_stride);
}

// x <- x L⁻ᵀ on one thread.
void solve_strip(const Square& l, float* x, std::int64_t x_stride, std::int64_t rows) {
  if (l.n <= kBlock) {
    for (std::int64_t r = 0; r < rows; r += kSolveRows) {
      solve_block(l, x + r * x_stride, x_stride, std::min(kSolveRows, rows - r));
    }
    return;
  }
  const std::int64_t half = first_half(l.n);
  solve_strip(l.leading(half), x, x_stride, rows);
  sgemm({.m = rows,
         .n = l.n - half,
         .k = half,
         .a = x,
         .a_stride = x_stride,
         .b = l.at(half, 0),
         .b_stride = l.stride,
         .transpose_b = true,
         .c = x + half,
         .c_stride = x_stride,
         .alpha = -1.0f,
         .beta = 1.0f});
  solve_strip(l.trailing(half), x + half, x_stride, rows);
}

// The lower triangle of c -= x xᵀ, by tiles. A tile on the diagonal is written whole; what lands
// above the diagonal is cleared at the end.
void subtract_gram(ThreadPool& threads, const float* x, std::int64_t x_stride, std::int64_t k,
                   const Square& c) {
  const std::int64_t edge = c.n >= 4096 ? 512 : 256;
  const std::int64_t tiles = (c.n + edge - 1) / edge;
  for_each_piece(threads, tiles * (tiles + 1) / 2, [&](std::int64_t t) {
    std::int64_t row = 0;
    while ((row + 1) * (row + 2) / 2 <= t) ++row;
    const std::int64_t i = row * edge;
    const std::int64_t j = (t - row * (row + 1) / 2) * edge;
    sgemm({.m = std::min(edge, c.n - i),
           .n = std::min(edge, c.n - j),
           .k = k,
           .a = x + i * x_stride,
           .a_stride = x_stride,
           .b = x + j * x_stride,
           .b_stride = x_stride,
           .transpose_b = true,
           .c = c.at(i, j),
           .c_stride = c.stride,
           .alpha = -1.0f,
           .beta = 1.0f});
  });
}

bool factor(ThreadPool& threads, const Square& a) {
  if (a.n <= kBlock) return factor_block(a);
  const std::int64_t half = first_half(a.n);
  if (!factor(threads, a.leading(half))) return false;
  for_each_range(threads, a.n - half, kStrip, [&](std::int64_t begin, std::int64_t end) {
    solve_strip(a.leading(half), a.at(half + begin, 0), a.stride, end - begin);
  });
  subtract_gram(threads, a.at(half, 0), a.stride, half, a.trailing(half));
  return factor(threads, a.trailing(half));
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void invert_block(
    const Square& l) {
  // Row i of the inverse: (e_i - sum_{k < i} l_ik row_k) / l_ii.
  double inverse[kBlock][kBlock] = {};
  for (std::int64_t i = 0; i < l.n; ++i) {
    inverse[i][i] = 1.0;
    for (std::int64_t k = 0; k < i; ++k) {
      const double factor = static_cast<double>(*l.at(i, k));
      for (std::int64_t j = 0; j <= k; ++j) inverse[i][j] -= factor * inverse[k][j];
    }
    const double diagonal = static_cast<double>(*l.at(i, i));
    for (std::int64_t j = 0; j <= i; ++j) inverse[i][j] /= diagonal;
  }
  for (std::int64_t i = 0; i < l.n; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) *l.at(i, j) = static_cast<float>(inverse[i][j]);
  }
}

void copy_rows(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride,
               std::int64_t rows, std::int64_t cols) {
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy_n(from + r * from_stride, cols, to + r * to_stride);
  }
}

// b <- b l for b [rows, l.n]: strips of rows, in which each tile of columns needs l's rows from the
// tile's own down.
void multiply_right(ThreadPool& threads, const Square& l, float* b, std::int64_t b_stride,
                    std::int64_t rows) {
  for_each_range(threads, rows, kStrip, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<float[]> own(new float[kStrip * l.n]);
    float* const strip = own.get();
    float* const target = b + begin * b_stride;
    copy_rows(target, b_stride, strip, l.n, end - begin, l.n);
    constexpr std::int64_t kEdge = 256;
    for (std::int64_t j = 0; j < l.n; j += kEdge) {
      sgemm({.m = end - begin,
             .n = std::min(kEdge, l.n - j),
             .k = l.n - j,
             .a = strip + j,
             .a_stride = l.n,
             .b = l.at(j, j),
             .b_stride = l.stride,
             .c = target + j,
             .c_stride = b_stride});
    }
  });
}

// b <- -l b for b [l.n, cols]: strips of columns, in which each tile of rows needs l's columns up
// to the tile's own.
void multiply_left_negated(ThreadPool& threads, const Square& l, float* b, std::int64_t b_stride,
                           std::int64_t cols) {
  for_each_range(threads, cols, kStrip, [&](std::int64_t begin, std::int64_t end) {
    const std::unique_ptr<float[]> own(new float[kStrip * l.n]);
    float* const strip = own.get();
    const std::int64_t width = end - begin;
    copy_rows(b + begin, b_stride, strip, width, l.n, width);
    constexpr std::int64_t kEdge = 256;
    for (std::int64_t i = 0; i < l.n; i += kEdge) {
      const std::int64_t height = std::min(kEdge, l.n - i);
      sgemm({.m = height,
             .n = width,
             .k = i + height,
             .a = l.at(i, 0),
             .a_stride = l.stride,
             .b = strip,
             .b_stride = width,
             .c = b + i * b_stride + begin,
             .c_stride = b_stride,
             .alpha = -1.0f});
    }
  });
}

void invert(ThreadPool& threads, const Square& l) {
  if (l.n <= kBlock) return invert_block(l);
  const std::int64_t half = first_half(l.n);
  invert(threads, l.leading(half));
  invert(threads, l.trailing(half));
  multiply_right(threads, l.leading(half), l.at(half, 0), l.stride, l.n - half);
  multiply_left_negated(threads, l.trailing(half), l.at(half, 0), l.stride, half);
}

void clear_strict_upper(ThreadPool& threads, const Square& a) {
  for_each_range(threads, a.n, rows_per_piece(a.n), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) std::fill(a.at(i, i + 1), a.at(i, a.n), 0.0f);
  });
}

}  // namespace

bool CpuBackend::run(const Cholesky& op) {
  const Square a{op.a.f32(), op.a.stride, op.a.rows};
  if (!factor(threads_, a)) return false;
  clear_strict_upper(threads_, a);
  return true;
}

void CpuBackend::run(const TriangularInverse& op) {
  const Square l{op.l.f32(), op.l.stride, op.l.rows};
  clear_strict_upper(threads_, l);  // products read whole tiles on the diagonal
  invert(threads_, l);
}

}  // namespace roundhouse
