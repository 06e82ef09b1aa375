#include "tests/reference/lookup_table.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace roundhouse::reference {

double least_cluster_error(const Matrix& w, const Matrix& sensitivity, std::int64_t row,
                           int clusters) {
  std::vector<std::pair<double, double>> points;
  for (std::int64_t i = 0; i < w.cols; ++i) points.emplace_back(w(row, i), sensitivity(row, i));
  std::sort(points.begin(), points.end());
  const std::size_t n = points.size();
  // cost[begin][end): squares around the mean, updated point by point (West 1979).
  std::vector<std::vector<double>> cost(n, std::vector<double>(n + 1, 0.0));
  for (std::size_t begin = 0; begin < n; ++begin) {
    double weight = 0.0, mean = 0.0, squares = 0.0;
    for (std::size_t end = begin; end < n; ++end) {
      const auto [x, s] = points[end];
      if (s > 0.0) {
        weight += s;
        const double before = x - mean;
        mean += before * s / weight;
        squares += s * before * (x - mean);
      }
      cost[begin][end + 1] = squares;
    }
  }
  std::vector<double> best = cost[0];
  for (int k = 2; k <= clusters; ++k) {
    std::vector<double> next = best;
    for (std::size_t end = 1; end <= n; ++end) {
      for (std::size_t split = 0; split < end; ++split) {
        next[end] = std::min(next[end], best[split] + cost[split][end]);
      }
    }
    best = next;
  }
  return best[n];
}

std::vector<double> table_errors(const Matrix& w, const Matrix& sensitivity, const Matrix& tables,
                                 const Matrix& codes) {
  std::vector<double> errors(static_cast<std::size_t>(w.rows), 0.0);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t j = 0; j < w.cols; ++j) {
      const double d = w(i, j) - tables(i, static_cast<std::int64_t>(codes(i, j)));
      errors[i] += sensitivity(i, j) * d * d;
    }
  }
  return errors;
}

Matrix dequantize_table(const Matrix& codes, const Matrix& tables,
                        const std::vector<Entry>& sparse) {
  Matrix w(codes.rows, codes.cols);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t j = 0; j < w.cols; ++j)
      w(i, j) = tables(i, static_cast<std::int64_t>(codes(i, j)));
  }
  for (const Entry& entry : sparse) w(entry.row, entry.column) += entry.value;
  return w;
}

Matrix dequantize(const Matrix& codes, const Matrix& scales, const Matrix& zeros,
                  std::int64_t group_size) {
  Matrix w(codes.rows, codes.cols);
  for (std::int64_t i = 0; i < w.rows; ++i) {
    for (std::int64_t j = 0; j < w.cols; ++j) {
      const std::int64_t group = j / group_size;
      w(i, j) = scales(i, group) * (codes(i, j) - zeros(i, group));
    }
  }
  return w;
}

}  // namespace roundhouse::reference
