#include "tests/reference/gradients.h"

#include <algorithm>
#include <cmath>

namespace roundhouse::reference {

Matrix numeric_gradient(const std::function<Matrix(const Matrix&)>& f, const Matrix& x,
                        const Matrix& dy) {
  Matrix dx(x.rows, x.cols);
  Matrix moved = x;
  for (std::size_t i = 0; i < x.values.size(); ++i) {
    const double step = 1e-5 * std::max(1.0, std::abs(x.values[i]));
    moved.values[i] = x.values[i] + step;
    const Matrix above = f(moved);
    moved.values[i] = x.values[i] - step;
    const Matrix below = f(moved);
    moved.values[i] = x.values[i];
    double sum = 0.0;
    for (std::size_t j = 0; j < dy.values.size(); ++j) {
      sum += dy.values[j] * (above.values[j] - below.values[j]);
    }
    dx.values[i] = sum / (2.0 * step);
  }
  return dx;
}

AttentionGradient attention_backward(const Matrix& q, const Matrix& k, const Matrix& v,
                                     const Matrix& d_out, std::int64_t heads, std::int64_t kv_heads,
                                     std::int64_t length, std::int64_t window, double scale,
                                     double score_cap) {
  AttentionGradient g{Matrix(q.rows, q.cols), Matrix(k.rows, k.cols), Matrix(v.rows, v.cols)};
  const std::int64_t head_dim = q.cols / heads;
  for (std::int64_t row = 0; row < q.rows; ++row) {
    const std::int64_t start = row / length * length;
    const std::int64_t first = window > 0 ? std::max(start, row - window + 1) : start;
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t at = head * head_dim, kv_at = head / (heads / kv_heads) * head_dim;
      std::vector<double> weight, d_weight, slope_of_cap;
      for (std::int64_t key = first; key <= row; ++key) {
        double score = 0.0, slope = 0.0;
        for (std::int64_t i = 0; i < head_dim; ++i) {
          score += q(row, at + i) * k(key, kv_at + i);
          slope += d_out(row, at + i) * v(key, kv_at + i);
        }
        score *= scale;
        const double capped = score_cap > 0.0 ? score_cap * std::tanh(score / score_cap) : score;
        slope_of_cap.push_back(score_cap > 0.0 ? 1.0 - std::pow(capped / score_cap, 2) : 1.0);
        weight.push_back(capped);
        d_weight.push_back(slope);
      }
      const double largest = *std::max_element(weight.begin(), weight.end());
      double sum = 0.0, mean_slope = 0.0;
      for (double& w : weight) sum += (w = std::exp(w - largest));
      for (double& w : weight) w /= sum;
      for (std::size_t j = 0; j < weight.size(); ++j) mean_slope += weight[j] * d_weight[j];
      for (std::int64_t key = first; key <= row; ++key) {
        const auto j = static_cast<std::size_t>(key - first);
        const double d_score = weight[j] * (d_weight[j] - mean_slope) * scale * slope_of_cap[j];
        for (std::int64_t i = 0; i < head_dim; ++i) {
          g.dv(key, kv_at + i) += weight[j] * d_out(row, at + i);
          g.dq(row, at + i) += d_score * k(key, kv_at + i);
          g.dk(key, kv_at + i) += d_score * q(row, at + i);
        }
      }
    }
  }
  return g;
}

}  // namespace roundhouse::reference
