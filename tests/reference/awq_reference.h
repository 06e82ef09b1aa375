// AWQ as the paper's program (llm-awq) has it, in double precision: every loss from true outputs over all tokens, no Gram matrices.
// To compare with. The grid's rule (kernels/grid.h) is taken as it is, in float32: its roundings decide codes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/grid.h"
#include "tests/reference/reference.h"

namespace roundhouse::reference {

struct AwqGrid {
  Grid grid = Grid::kAsymAwq;
  int bits = 4;
  std::int64_t group_size = 128;
};

// Q(w), group by group.
inline Matrix rounded(const Matrix& w, const AwqGrid& g) {
  Matrix q(w.rows, w.cols);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t first = 0; first < w.cols; first += g.group_size) {
      const std::int64_t end = std::min(w.cols, first + g.group_size);
      const auto [lo, hi] = std::minmax_element(w.values.begin() + i * w.cols + first,
                                                w.values.begin() + i * w.cols + end);
      const GridPoint p =
          make_grid_point(g.grid, g.bits, static_cast<float>(*lo), static_cast<float>(*hi));
      for (std::int64_t j = first; j < end; ++j) {
        const int code = code_of(static_cast<float>(w(i, j)), p.scale, p.zero, (1 << g.bits) - 1);
        q(i, j) = static_cast<double>(value_of(code, p.scale, p.zero));
      }
    }
  }
  return q;
}

// Q(w diag(s)) diag(1/s).
inline Matrix scaled_rounding(const Matrix& w, const std::vector<float>& s, const AwqGrid& g) {
  Matrix scaled = w;
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t j = 0; j < w.cols; ++j) {
      scaled(i, j) = static_cast<double>(static_cast<float>(w(i, j)) * s[j]);
    }
  }
  Matrix q = rounded(scaled, g);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t j = 0; j < w.cols; ++j) {
      q(i, j) = static_cast<double>(static_cast<float>(q(i, j)) / s[j]);
    }
  }
  return q;
}

// Mean of |x| by column.
inline std::vector<double> magnitudes(const Matrix& x) {
  std::vector<double> mean(static_cast<std::size_t>(x.cols));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t k = 0; k < x.cols; ++k) mean[k] += std::abs(x(t, k));
  }
  for (double& m : mean) m /= static_cast<double>(x.rows);
  return mean;
}

// s = clamp(a^r, 1e-4) / sqrt(max min).
inline std::vector<float> scales(const std::vector<double>& magnitude, double ratio) {
  std::vector<double> s;
  for (const double a : magnitude) s.push_back(std::max(std::pow(a, ratio), 1e-4));
  const auto [lo, hi] = std::minmax_element(s.begin(), s.end());
  const double middle = std::sqrt(*lo * *hi);
  std::vector<float> result;
  for (const double value : s) result.push_back(static_cast<float>(value / middle));
  return result;
}

// mean((x wᵀ - x qᵀ)²)
inline double output_error(const Matrix& x, const Matrix& w, const Matrix& q) {
  const Matrix want = product(x, transpose(w)), got = product(x, transpose(q));
  double sum = 0;
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    sum += (want.values[i] - got.values[i]) * (want.values[i] - got.values[i]);
  }
  return sum / static_cast<double>(want.values.size());
}

struct Clip {
  std::vector<std::vector<double>> errors;  // [rows * groups][candidates], sums over tokens
  std::vector<int> best;                    // first least candidate
  Matrix clipped;
};

// Candidates 1 - j / 20 for j < candidates, judged by each group's share of the outputs for inputs x alone.
inline Clip clip(const Matrix& w, const Matrix& x, const AwqGrid& g, int candidates) {
  Clip result;
  result.clipped = w;
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t first = 0; first < w.cols; first += g.group_size) {
      const std::int64_t n = std::min(w.cols - first, g.group_size);
      Matrix group(1, n), inputs(x.rows, n);
      float largest = 0;
      for (std::int64_t k = 0; k < n; ++k) {
        group(0, k) = w(i, first + k);
        largest = std::max(largest, std::abs(static_cast<float>(group(0, k))));
        for (std::int64_t t = 0; t < x.rows; ++t) inputs(t, k) = x(t, first + k);
      }
      const auto clamped = [&](int j) {
        const double bound = static_cast<double>(largest * (1.0f - static_cast<float>(j) / 20.0f));
        Matrix c = group;
        for (double& value : c.values) value = std::clamp(value, -bound, bound);
        return c;
      };
      std::vector<double> errors;
      for (int j = 0; j < candidates; ++j) {
        errors.push_back(output_error(inputs, group, rounded(clamped(j), g)) *
                         static_cast<double>(x.rows));
      }
      const int best =
          static_cast<int>(std::min_element(errors.begin(), errors.end()) - errors.begin());
      for (std::int64_t k = 0; k < n; ++k) result.clipped(i, first + k) = clamped(best)(0, k);
      result.errors.push_back(errors);
      result.best.push_back(best);
    }
  }
  return result;
}

}  // namespace roundhouse::reference
