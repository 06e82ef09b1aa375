#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

// Long sums are taken in float32 inside a chunk and in double over chunks.
constexpr std::int64_t kChunk = 1024;

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void rms_norm_row(
    const float* x, const float* weight, float offset, float epsilon, std::int64_t n, float* y) {
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = n - begin < kChunk ? n : begin + kChunk;
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t i = begin; i < end; ++i) squares += x[i] * x[i];
    sum += static_cast<double>(squares);
  }
  const float mean = static_cast<float>(sum / static_cast<double>(n));
  // Multiplied, not divided: a row of zeros gives zeros even with an epsilon of 0.
  const float factor = mean + epsilon > 0.0f ? 1.0f / std::sqrt(mean + epsilon) : mean;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * (offset + weight[i]);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void layer_norm_row(
    const float* x, const float* weight, const float* bias, float epsilon, std::int64_t n,
    float* y) {
  // In double: the error of a float sum of values far from 0 would be as large as their spread.
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  const float mean = static_cast<float>(sum / static_cast<double>(n));
  double squares = 0.0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t i = 0; i < n; ++i) {
    squares += static_cast<double>((x[i] - mean) * (x[i] - mean));
  }
  const float variance = static_cast<float>(squares / static_cast<double>(n));
  // As in rms_norm_row: a constant row gives the bias even with an epsilon of 0.
  const float factor = variance + epsilon > 0.0f ? 1.0f / std::sqrt(variance + epsilon) : variance;
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void relu_row(const float* x,
                                                                                    std::int64_t n,
                                                                                    float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void scaled_sum_row(
    const float* x, float scale, bool accumulate, std::int64_t n, float* y) {
  if (accumulate) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] += scale * x[i];
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) y[i] = scale * x[i];
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void rotate_row(
    float* x, const float* cos, const float* sin, float direction, std::int64_t heads,
    std::int64_t head_dim, std::int64_t half) {
  for (std::int64_t head = 0; head < heads; ++head) {
    float* const a = x + head_dim * head;
    float* const b = a + half;
#pragma omp simd
    for (std::int64_t i = 0; i < half; ++i) {
      const float turn = direction * sin[i];
      const float first = a[i] * cos[i] - b[i] * turn;
      const float second = b[i] * cos[i] + a[i] * turn;
      a[i] = first;
      b[i] = second;
    }
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void gated_product_row(
    const float* gate, const float* up, GateFunction function, std::int64_t n, float* y) {
  if (function == GateFunction::kSilu) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      y[i] = gate[i] / (1.0f + fast_exp(-gate[i])) * up[i];
    }
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) {
      y[i] = gate[i] / (1.0f + fast_exp(-gelu_exponent(gate[i]))) * up[i];
    }
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void soft_cap_row(
    const float* x, float cap, std::int64_t n, float* y) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) y[i] = cap * fast_tanh(x[i] / cap);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] bool all_finite(
    const float* x, std::int64_t n) {
  std::uint32_t bad = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    bad |= (bits & 0x7f800000u) == 0x7f800000u ? 1u : 0u;
  }
  return bad == 0;
}

}  // namespace

void CpuBackend::run(const RmsNorm& op) {
  const std::int64_t cols = op.x.cols;
  const float* const x = op.x.f32();
  const float* const weight = op.weight.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     rms_norm_row(x + row * op.x.stride, weight, op.offset, op.epsilon, cols,
                                  y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const LayerNorm& op) {
  const std::int64_t cols = op.x.cols;
  const float* const x = op.x.f32();
  const float* const weight = op.weight.f32();
  const float* const bias = op.bias.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     layer_norm_row(x + row * op.x.stride, weight, bias, op.epsilon, cols,
                                    y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const Rope& op) {
  const std::int64_t half = op.cos.cols;
  float* const x = op.x.f32();
  const float* const cos = op.cos.f32();
  const float* const sin = op.sin.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(op.x.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const std::int64_t position = row % op.length;
                     rotate_row(x + row * op.x.stride, cos + position * op.cos.stride,
                                sin + position * op.sin.stride, op.backward ? -1.0f : 1.0f,
                                op.heads, op.head_dim, half);
                   }
                 });
}

void CpuBackend::run(const GatedProduct& op) {
  const std::int64_t cols = op.gate.cols;
  const float* const gate = op.gate.f32();
  const float* const up = op.up.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.gate.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     gated_product_row(gate + row * op.gate.stride, up + row * op.up.stride,
                                       op.function, cols, y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const ScaledSum& op) {
  const std::int64_t cols = op.x.cols;
  const float* const x = op.x.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     scaled_sum_row(x + row * op.x.stride, op.scale, op.accumulate, cols,
                                    y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const SoftCap& op) {
  const std::int64_t cols = op.x.cols;
  const float* const x = op.x.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     soft_cap_row(x + row * op.x.stride, op.cap, cols, y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const Relu& op) {
  const std::int64_t cols = op.x.cols;
  const float* const x = op.x.f32();
  float* const y = op.y.f32();
  for_each_range(threads_, op.x.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     relu_row(x + row * op.x.stride, cols, y + row * op.y.stride);
                   }
                 });
}

void CpuBackend::run(const CheckFinite& op) {
  const float* const x = op.x.f32();
  for_each_piece(threads_, std::ssize(op.finite), [&](std::int64_t s) {
    bool finite = true;
    for (std::int64_t row = s * op.rows_each; row < (s + 1) * op.rows_each && finite; ++row) {
      finite = all_finite(x + row * op.x.stride, op.x.cols);
    }
    op.finite[s] = finite ? 1 : 0;
  });
}

}  // namespace roundhouse
