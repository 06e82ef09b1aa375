#include "tests/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace roundhouse::reference {

Matrix transpose(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  }
  return t;
}

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t k = 0; k < a.cols; ++k) {
      for (std::int64_t j = 0; j < b.cols; ++j) c(i, j) += a(i, k) * b(k, j);
    }
  }
  return c;
}

Matrix cholesky(const Matrix& a) {
  Matrix l(a.rows, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = a(i, j);
      for (std::int64_t k = 0; k < j; ++k) sum -= l(i, k) * l(j, k);
      l(i, j) = i == j ? std::sqrt(sum) : sum / l(j, j);
    }
  }
  return l;
}

Matrix triangular_inverse(const Matrix& l) {
  Matrix inverse(l.rows, l.rows);
  for (std::int64_t col = 0; col < l.rows; ++col) {
    for (std::int64_t i = col; i < l.rows; ++i) {
      double sum = i == col ? 1.0 : 0.0;
      for (std::int64_t k = col; k < i; ++k) sum -= l(i, k) * inverse(k, col);
      inverse(i, col) = sum / l(i, i);
    }
  }
  return inverse;
}

Matrix rms_norm(const Matrix& x, const Matrix& weight, double epsilon, double offset) {
  Matrix y(x.rows, x.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double sum = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) sum += x(i, j) * x(i, j);
    const double mean = sum / static_cast<double>(x.cols);
    for (std::int64_t j = 0; j < x.cols; ++j) {
      y(i, j) = sum == 0.0 ? 0.0 : x(i, j) / std::sqrt(mean + epsilon) * (offset + weight(0, j));
    }
  }
  return y;
}

Matrix layer_norm(const Matrix& x, const Matrix& weight, const Matrix& bias, double epsilon) {
  Matrix y(x.rows, x.cols);
  const auto n = static_cast<double>(x.cols);
  for (std::int64_t i = 0; i < x.rows; ++i) {
    double mean = 0.0, variance = 0.0;
    for (std::int64_t j = 0; j < x.cols; ++j) mean += x(i, j) / n;
    for (std::int64_t j = 0; j < x.cols; ++j) variance += (x(i, j) - mean) * (x(i, j) - mean) / n;
    for (std::int64_t j = 0; j < x.cols; ++j) {
      y(i, j) = (x(i, j) - mean) / std::sqrt(variance + epsilon) * weight(0, j) + bias(0, j);
    }
  }
  return y;
}

Matrix rope(const Matrix& x, const Matrix& cos, const Matrix& sin, std::int64_t heads,
            std::int64_t length) {
  Matrix y(x.rows, x.cols);
  const std::int64_t head_dim = x.cols / heads;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t row = 0; row < x.rows; ++row) {
    const std::int64_t position = row % length;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double a = x(row, head * head_dim + i);
        const double b = x(row, head * head_dim + half + i);
        y(row, head * head_dim + i) = a * cos(position, i) - b * sin(position, i);
        y(row, head * head_dim + half + i) = b * cos(position, i) + a * sin(position, i);
      }
    }
  }
  return y;
}

Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, std::int64_t heads,
                 std::int64_t kv_heads, std::int64_t length, std::int64_t window, double scale,
                 double score_cap) {
  Matrix out(q.rows, q.cols);
  const std::int64_t head_dim = q.cols / heads;
  for (std::int64_t row = 0; row < q.rows; ++row) {
    const std::int64_t start = row / length * length;
    const std::int64_t first = window > 0 ? std::max(start, row - window + 1) : start;
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t kv_head = head / (heads / kv_heads);
      std::vector<double> weight;
      for (std::int64_t key = first; key <= row; ++key) {
        double score = 0.0;
        for (std::int64_t i = 0; i < head_dim; ++i) {
          score += q(row, head * head_dim + i) * k(key, kv_head * head_dim + i);
        }
        score *= scale;
        weight.push_back(score_cap > 0.0 ? score_cap * std::tanh(score / score_cap) : score);
      }
      const double largest = *std::max_element(weight.begin(), weight.end());
      double sum = 0.0;
      for (double& w : weight) sum += (w = std::exp(w - largest));
      for (std::int64_t key = first; key <= row; ++key) {
        for (std::int64_t i = 0; i < head_dim; ++i) {
          out(row, head * head_dim + i) +=
              weight[key - first] / sum * v(key, kv_head * head_dim + i);
        }
      }
    }
  }
  return out;
}

Matrix gated_product(const Matrix& gate, const Matrix& up, GateFunction function) {
  Matrix y(gate.rows, gate.cols);
  for (std::size_t i = 0; i < y.values.size(); ++i) {
    const double x = gate.values[i];
    const double inner = std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x);
    const double of_gate = function == GateFunction::kSilu ? x / (1.0 + std::exp(-x))
                                                           : 0.5 * x * (1.0 + std::tanh(inner));
    y.values[i] = of_gate * up.values[i];
  }
  return y;
}

Matrix soft_cap(const Matrix& x, double cap) {
  Matrix y = x;
  for (double& value : y.values) value = cap * std::tanh(value / cap);
  return y;
}

Matrix relu(const Matrix& x) {
  Matrix y = x;
  for (double& value : y.values) value = std::max(value, 0.0);
  return y;
}

std::vector<double> cross_entropy(const Matrix& logits, const std::vector<std::int32_t>& target) {
  std::vector<double> loss;
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    double largest = logits(i, 0);
    for (std::int64_t j = 0; j < logits.cols; ++j) largest = std::max(largest, logits(i, j));
    double sum = 0.0;
    for (std::int64_t j = 0; j < logits.cols; ++j) sum += std::exp(logits(i, j) - largest);
    const std::int32_t t = target[i];
    loss.push_back(t < 0 ? 0.0 : largest + std::log(sum) - logits(i, t));
  }
  return loss;
}

std::vector<std::int64_t> largest_columns(const Matrix& logits) {
  std::vector<std::int64_t> columns;
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    std::int64_t column = 0;
    for (std::int64_t j = 0; j < logits.cols; ++j)
      if (logits(i, j) > logits(i, column)) column = j;
    columns.push_back(column);
  }
  return columns;
}

std::vector<double> divergences(const Matrix& a, const Matrix& b) {
  std::vector<double> nats;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    const auto log_sum = [&](const Matrix& m) {
      double sum = 0.0;
      for (std::int64_t j = 0; j < m.cols; ++j) sum += std::exp(m(i, j));
      return std::log(sum);
    };
    const double log_sum_a = log_sum(a), log_sum_b = log_sum(b);
    double sum = 0.0;
    for (std::int64_t j = 0; j < a.cols; ++j) {
      const double ln_p = a(i, j) - log_sum_a, ln_q = b(i, j) - log_sum_b;
      sum += std::exp(ln_p) * (ln_p - ln_q);
    }
    nats.push_back(sum);
  }
  return nats;
}

double exact_scale(Grid grid, int bits, double lo, double hi) {
  const double qmax = std::pow(2.0, bits) - 1.0;
  const double a = std::max(std::abs(lo), std::abs(hi));
  switch (grid) {
    case Grid::kAsymGptq:
      if (lo == 0.0 && hi == 0.0) return 2.0 / qmax;
      return (std::max(hi, 0.0) - std::min(lo, 0.0)) / qmax;
    case Grid::kAsymAwq:
      return std::max(hi - lo, 1e-5) / qmax;
    case Grid::kAsymAutoRound:
      return std::max((std::max(hi, 0.0) - std::min(lo, 0.0)) / qmax, 1e-5);
    case Grid::kSymGptq:
      return a == 0.0 ? 1e-5 : 2.0 * a / qmax;
    case Grid::kSymFull:
      return (-lo > hi ? 1.0 : -1.0) * std::max(a / std::pow(2.0, bits - 1), 1e-5);
  }
  return 0.0;
}

int zero_for(Grid grid, int bits, double lo, double hi, double scale) {
  if (is_symmetric(grid)) return 1 << (bits - 1);
  if (grid != Grid::kAsymAwq) lo = std::min(lo, 0.0);
  if (grid == Grid::kAsymGptq && lo == 0.0 && hi == 0.0) lo = -1.0;
  const double zero = std::nearbyint(-lo / scale);
  return static_cast<int>(std::clamp(zero, 0.0, std::pow(2.0, bits) - 1.0));
}

Panel gptq_panel(const Matrix& w, const Matrix& u, int bits, const Matrix& scales,
                 const Matrix& zeros) {
  Panel panel{std::vector<std::uint8_t>(w.values.size()), Matrix(w.rows, w.cols),
              std::vector<double>(static_cast<std::size_t>(w.rows), 0.0)};
  const double qmax = std::pow(2.0, bits) - 1.0;
  Matrix working = w;
  for (std::int64_t row = 0; row < w.rows; ++row) {
    for (std::int64_t i = 0; i < w.cols; ++i) {
      const double code =
          std::clamp(std::nearbyint(working(row, i) / scales(row, i)) + zeros(row, i), 0.0, qmax);
      const double value = scales(row, i) * (code - zeros(row, i));
      const double error = (working(row, i) - value) / u(i, i);
      for (std::int64_t j = i + 1; j < w.cols; ++j) working(row, j) -= error * u(i, j);
      panel.codes[row * w.cols + i] = static_cast<std::uint8_t>(code);
      panel.errors(row, i) = error;
      panel.loss[row] += error * error / 2.0;
    }
  }
  return panel;
}

}  // namespace roundhouse::reference
