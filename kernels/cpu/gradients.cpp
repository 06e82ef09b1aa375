#include "kernels/gradients.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

// Long sums are taken in float32 inside a chunk and in double over chunks.
constexpr std::int64_t kChunk = 1024;

std::int64_t end_of_chunk(std::int64_t begin, std::int64_t n) {
  return n - begin < kChunk ? n : begin + kChunk;
}

// dx (+)= dy (offset + weight) a + x b + c
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void combine_row(
    const float* x, const float* weight, float offset, const float* dy, float a, float b, float c,
    std::int64_t n, bool accumulate, float* dx) {
  if (accumulate) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) dx[i] += dy[i] * (offset + weight[i]) * a + x[i] * b + c;
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) dx[i] = dy[i] * (offset + weight[i]) * a + x[i] * b + c;
  }
}

struct NormSums {
  double x, xx;  // of x, x²
};
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] NormSums norm_sums(
    const float* x, std::int64_t n) {
  NormSums sums{0.0, 0.0};
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = end_of_chunk(begin, n);
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum, squares)
    for (std::int64_t i = begin; i < end; ++i) {
      sum += x[i];
      squares += x[i] * x[i];
    }
    sums.x += static_cast<double>(sum);
    sums.xx += static_cast<double>(squares);
  }
  return sums;
}

struct GradientSums {
  double g, gx;  // of g = dy (offset + weight), g (x - shift)
};
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] GradientSums gradient_sums(
    const float* x, const float* weight, float offset, const float* dy, float shift,
    std::int64_t n) {
  GradientSums sums{0.0, 0.0};
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = end_of_chunk(begin, n);
    float g_sum = 0.0f, gx_sum = 0.0f;
#pragma omp simd reduction(+ : g_sum, gx_sum)
    for (std::int64_t i = begin; i < end; ++i) {
      const float g = dy[i] * (offset + weight[i]);
      g_sum += g;
      gx_sum += g * (x[i] - shift);
    }
    sums.g += static_cast<double>(g_sum);
    sums.gx += static_cast<double>(gx_sum);
  }
  return sums;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double squares_around(
    const float* x, float mean, std::int64_t n) {
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = end_of_chunk(begin, n);
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) part += (x[i] - mean) * (x[i] - mean);
    sum += static_cast<double>(part);
  }
  return sum;
}

// 1 / sqrt(variance + epsilon); 0 for a row of zeros without an epsilon, whose output does not depend on its input's scale.
double reciprocal_root(double variance, float epsilon) {
  const double sum = variance + static_cast<double>(epsilon);
  return sum > 0.0 ? 1.0 / std::sqrt(sum) : variance;  // NaN stays NaN
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void
gated_product_backward_row(const float* gate, const float* up, const float* dy,
                           GateFunction function, std::int64_t n, float* d_gate, float* d_up) {
  if (function == GateFunction::kSilu) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const float g = gate[i], u = up[i], d = dy[i];
      const float s = 1.0f / (1.0f + fast_exp(-g));
      d_gate[i] = d * u * s * (1.0f + g * (1.0f - s));
      d_up[i] = d * g * s;
    }
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      const float g = gate[i], u = up[i], d = dy[i];
      const float s = 1.0f / (1.0f + fast_exp(-gelu_exponent(g)));
      d_gate[i] = d * u * s * (1.0f + g * (1.0f - s) * gelu_exponent_slope(g));
      d_up[i] = d * g * s;
    }
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void relu_backward_row(
    const float* y, const float* dy, std::int64_t n, float* dx) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) dx[i] = y[i] > 0.0f ? dy[i] : 0.0f;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double squared_error_row(
    const float* y, const float* target, float scale, std::int64_t n, float* dy) {
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = end_of_chunk(begin, n);
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) {
      const float difference = y[i] - target[i];
      part += difference * difference;
      dy[i] = scale * difference;
    }
    sum += static_cast<double>(part);
  }
  return sum;
}

// sum += g, squares += g²; either may be absent.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void add_gradient_row(
    const float* g, std::int64_t n, float* sum, float* squares) {
  if (sum) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) sum[i] += g[i];
  }
  if (squares) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) squares[i] += g[i] * g[i];
  }
}

}  // namespace

void CpuBackend::run(const RmsNormBackward& op) {
  const std::int64_t cols = op.x.cols;
  const auto n = static_cast<double>(cols);
  const float* const all_x = op.x.f32();
  const float* const weight = op.weight.f32();
  const float* const all_dy = op.dy.f32();
  float* const all_dx = op.dx.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const float* const x = all_x + row * op.x.stride;
                     const float* const dy = all_dy + row * op.dy.stride;
                     const double r = reciprocal_root(norm_sums(x, cols).xx / n, op.epsilon);
                     const double gx = gradient_sums(x, weight, op.offset, dy, 0.0f, cols).gx / n;
                     combine_row(x, weight, op.offset, dy, static_cast<float>(r),
                                 static_cast<float>(-r * r * r * gx), 0.0f, cols, op.accumulate,
                                 all_dx + row * op.dx.stride);
                   }
                 });
}

void CpuBackend::run(const LayerNormBackward& op) {
  const std::int64_t cols = op.x.cols;
  const auto n = static_cast<double>(cols);
  const float* const all_x = op.x.f32();
  const float* const weight = op.weight.f32();
  const float* const all_dy = op.dy.f32();
  float* const all_dx = op.dx.f32();
  for_each_range(
      threads_, op.x.rows, rows_per_piece(cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const x = all_x + row * op.x.stride;
          const float* const dy = all_dy + row * op.dy.stride;
          const double mean = norm_sums(x, cols).x / n;
          const double r =
              reciprocal_root(squares_around(x, static_cast<float>(mean), cols) / n, op.epsilon);
          const GradientSums sums =
              gradient_sums(x, weight, 0.0f, dy, static_cast<float>(mean), cols);
          // r (g - mean(g) - (x - mean) r² mean(g (x - mean)))
          const double slope = -r * r * r * sums.gx / n;
          combine_row(x, weight, 0.0f, dy, static_cast<float>(r), static_cast<float>(slope),
                      static_cast<float>(-r * sums.g / n - slope * mean), cols, op.accumulate,
                      all_dx + row * op.dx.stride);
        }
      });
}

void CpuBackend::run(const GatedProductBackward& op) {
  const float* const gate = op.gate.f32();
  const float* const up = op.up.f32();
  const float* const dy = op.dy.f32();
  float* const d_gate = op.d_gate.f32();
  float* const d_up = op.d_up.f32();
  for_each_range(threads_, op.gate.rows, rows_per_piece(op.gate.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     gated_product_backward_row(
                         gate + row * op.gate.stride, up + row * op.up.stride,
                         dy + row * op.dy.stride, op.function, op.gate.cols,
                         d_gate + row * op.d_gate.stride, d_up + row * op.d_up.stride);
                   }
                 });
}

void CpuBackend::run(const ReluBackward& op) {
  const float* const y = op.y.f32();
  const float* const dy = op.dy.f32();
  float* const dx = op.dx.f32();
  for_each_range(threads_, op.y.rows, rows_per_piece(op.y.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     relu_backward_row(y + row * op.y.stride, dy + row * op.dy.stride, op.y.cols,
                                       dx + row * op.dx.stride);
                   }
                 });
}

double CpuBackend::run(const SquaredError& op) {
  const float* const y = op.y.f32();
  const float* const target = op.target.f32();
  float* const dy = op.dy.f32();
  std::vector<double> of_row(static_cast<std::size_t>(op.y.rows));
  for_each_range(
      threads_, op.y.rows, rows_per_piece(op.y.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          of_row[row] = squared_error_row(y + row * op.y.stride, target + row * op.target.stride,
                                          op.scale, op.y.cols, dy + row * op.dy.stride);
        }
      });
  double sum = 0.0;
  for (const double row : of_row) sum += row;
  return sum;
}

void CpuBackend::run(const AddGradient& op) {
  const float* const gradient = op.gradient.f32();
  float* const sum = op.sum.data ? op.sum.f32() : nullptr;
  float* const squares = op.squares.data ? op.squares.f32() : nullptr;
  for_each_range(threads_, op.gradient.rows, rows_per_piece(op.gradient.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     add_gradient_row(gradient + row * op.gradient.stride, op.gradient.cols,
                                      sum ? sum + row * op.sum.stride : nullptr,
                                      squares ? squares + row * op.squares.stride : nullptr);
                   }
                 });
}

}  // namespace roundhouse
