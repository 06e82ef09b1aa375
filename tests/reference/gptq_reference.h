// GPTQ as the paper and its first implementation have it, in double precision and without any
// blocking: to compare with.
//
// Literal on purpose: the factor by Cholesky, inverse, Cholesky; each column's error spread over
// all later columns at once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/dtype.h"

namespace roundhouse::reference {

struct Matrix64 {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> values = std::vector<double>(static_cast<std::size_t>(rows * cols));

  double& operator()(std::int64_t r, std::int64_t c) { return values[r * cols + c]; }
  double operator()(std::int64_t r, std::int64_t c) const { return values[r * cols + c]; }
};

inline Matrix64 transposed(const Matrix64& a) {
  Matrix64 t{a.cols, a.rows};
  for (std::int64_t r = 0; r < a.rows; ++r) {
    for (std::int64_t c = 0; c < a.cols; ++c) t(c, r) = a(r, c);
  }
  return t;
}

inline Matrix64 product(const Matrix64& a, const Matrix64& b) {
  Matrix64 c{a.rows, b.cols};
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t j = 0; j < b.cols; ++j) c(i, j) += a(i, k) * b(k, j);
    }
  }
  return c;
}

// Lower L with a = L Lᵀ.
inline Matrix64 cholesky(const Matrix64& a) {
  Matrix64 l{a.rows, a.rows};
  for (std::int64_t j = 0; j < a.rows; ++j) {
    for (std::int64_t i = j; i < a.rows; ++i) {
      double sum = a(i, j);
      for (std::int64_t k = 0; k < j; ++k) sum -= l(i, k) * l(j, k);
      if (i == j && !(sum > 0)) throw std::runtime_error("not positive definite");
      l(i, j) = i == j ? std::sqrt(sum) : sum / l(j, j);
    }
  }
  return l;
}

// (L Lᵀ)⁻¹ by solving L Lᵀ X = I.
inline Matrix64 cholesky_inverse(const Matrix64& l) {
  const std::int64_t n = l.rows;
  Matrix64 x{n, n};
  for (std::int64_t c = 0; c < n; ++c) {
    for (std::int64_t i = 0; i < n; ++i) {
      double sum = i == c ? 1.0 : 0.0;
      for (std::int64_t k = 0; k < i; ++k) sum -= l(i, k) * x(k, c);
      x(i, c) = sum / l(i, i);
    }
    for (std::int64_t i = n - 1; i >= 0; --i) {
      double sum = x(i, c);
      for (std::int64_t k = i + 1; k < n; ++k) sum -= l(k, i) * x(k, c);
      x(i, c) = sum / l(i, i);
    }
  }
  return x;
}

// Upper U with H⁻¹ = Uᵀ U, the literal way.
inline Matrix64 gptq_factor(const Matrix64& h) {
  return transposed(cholesky(cholesky_inverse(cholesky(h))));
}

struct Gptq {
  int bits = 4;
  std::int64_t group_size = 128;  // at most the row
  bool symmetric = false;
  bool by_importance = true;
  bool static_groups = true;
  double damping = 0.01;
};

struct GptqSolution {
  std::vector<int> codes;      // [rows, cols] by column of w
  std::vector<double> values;  // the same, dequantized
  std::vector<double>
      in_steps;  // w / s of each weight when it was rounded: how near to a tie it was
  std::vector<std::int64_t> group_of_column;
  std::vector<std::int64_t> order;
  std::vector<double> row_loss;
};

struct Point64 {
  double scale, zero;
};

inline Point64 grid_point(const Gptq& settings, double low, double high) {
  const double levels = (1 << settings.bits) - 1;
  low = std::min(low, 0.0);
  high = std::max(high, 0.0);
  if (settings.symmetric) {
    high = std::max(-low, high);
    low = -high;
  }
  if (low == high) low = -1, high = 1;
  const double scale = round_to_half(static_cast<float>((high - low) / levels));
  return {scale, settings.symmetric ? (levels + 1) / 2 : std::nearbyint(-low / scale)};
}

inline GptqSolution gptq(Matrix64 w, Matrix64 h, const Gptq& settings) {
  const std::int64_t rows = w.rows, cols = w.cols, g = settings.group_size;
  const bool whole_rows = g == cols;
  const auto group_point = [&](const Matrix64& m, std::int64_t row, std::int64_t begin) {
    double low = m(row, begin), high = low;
    for (std::int64_t c = begin; c < std::min(begin + g, cols); ++c) {
      low = std::min(low, m(row, c));
      high = std::max(high, m(row, c));
    }
    return grid_point(settings, low, high);
  };
  const std::int64_t groups = (cols + g - 1) / g;
  std::vector<Point64> grid(static_cast<std::size_t>(rows * groups));
  const auto find_all = [&] {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < groups; ++i) {
        grid[r * groups + i] = group_point(w, r, i * g);
      }
    }
  };

  if (whole_rows) find_all();
  for (std::int64_t k = 0; k < cols; ++k) {
    if (h(k, k) != 0) continue;
    h(k, k) = 1;
    for (std::int64_t r = 0; r < rows; ++r) w(r, k) = 0;
  }
  if (settings.static_groups && !whole_rows) find_all();

  GptqSolution solution;
  solution.order.resize(static_cast<std::size_t>(cols));
  std::iota(solution.order.begin(), solution.order.end(), std::int64_t{0});
  if (settings.by_importance) {
    std::stable_sort(solution.order.begin(), solution.order.end(),
                     [&](std::int64_t a, std::int64_t b) { return h(a, a) > h(b, b); });
  }
  const auto& order = solution.order;
  Matrix64 wp{rows, cols}, hp{cols, cols};
  double mean = 0;
  for (std::int64_t i = 0; i < cols; ++i) {
    const std::int64_t from = order[i];
    for (std::int64_t r = 0; r < rows; ++r) wp(r, i) = w(r, from);
    for (std::int64_t j = 0; j < cols; ++j) hp(i, j) = h(from, order[j]);
    mean += hp(i, i) / static_cast<double>(cols);
  }
  for (std::int64_t i = 0; i < cols; ++i) hp(i, i) += settings.damping * mean;
  const Matrix64 u = gptq_factor(hp);

  const auto size = static_cast<std::size_t>(rows * cols);
  solution.codes.resize(size);
  solution.values.resize(size);
  solution.in_steps.resize(size);
  solution.group_of_column.resize(static_cast<std::size_t>(cols));
  solution.row_loss.resize(static_cast<std::size_t>(rows));
  for (std::int64_t i = 0; i < cols; ++i) {
    const std::int64_t column = order[i];
    const bool fixed = whole_rows || settings.static_groups;
    const std::int64_t group = (fixed ? column : i) / g;
    solution.group_of_column[column] = group;
    for (std::int64_t r = 0; r < rows; ++r) {
      Point64& point = grid[r * groups + group];
      if (!fixed && i % g == 0) point = group_point(wp, r, i);
      const auto at = static_cast<std::size_t>(r * cols + column);
      solution.in_steps[at] = wp(r, i) / point.scale;
      const double code = std::clamp(std::nearbyint(solution.in_steps[at]) + point.zero, 0.0,
                                     static_cast<double>((1 << settings.bits) - 1));
      solution.codes[at] = static_cast<int>(code);
      solution.values[at] = point.scale * (code - point.zero);
      const double error = (wp(r, i) - solution.values[at]) / u(i, i);
      solution.row_loss[r] += error * error / 2;
      for (std::int64_t j = i; j < cols; ++j) wp(r, j) -= error * u(i, j);
    }
  }
  return solution;
}

}  // namespace roundhouse::reference
