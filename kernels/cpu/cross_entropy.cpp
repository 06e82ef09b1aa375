// Cross-entropy of logits, forward and backward.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/row_maximum.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

// Long sums are taken in float32 inside a chunk and in double over chunks.
constexpr std::int64_t kChunk = 1024;

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double log_sum_exp_row(
    const float* x, std::int64_t n) {
  float largest = x[0];
  std::int64_t done = 0;
  if (n >= kLanes) {
    Lanes high = *reinterpret_cast<const Lanes*>(x);
    for (; done + kLanes <= n; done += kLanes) {
      const Lanes next = *reinterpret_cast<const Lanes*>(x + done);
      high = next > high ? next : high;
    }
    for (int lane = 0; lane < kLanes; ++lane) largest = high[lane] > largest ? high[lane] : largest;
  }
  for (; done < n; ++done) largest = x[done] > largest ? x[done] : largest;
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = n - begin < kChunk ? n : begin + kChunk;
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) part += fast_exp(x[i] - largest);
    sum += static_cast<double>(part);
  }
  return static_cast<double>(largest) + std::log(sum);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] std::int32_t largest_of_row(
    const float* x, std::int64_t n) {
  return static_cast<std::int32_t>(column_of_largest(x, n));
}

// d = scale exp(x - log_sum_exp)
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void scaled_softmax_row(
    const float* x, float log_sum_exp, float scale, std::int64_t n, float* d) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) d[i] = scale * fast_exp(x[i] - log_sum_exp);
}

// Of c tanh(x / c), from its value.
inline float slope_of_cap(float capped, float cap) {
  const float t = capped / cap;
  return 1.0f - t * t;
}

// d = scale exp(x - log_sum_exp) (1 - (x / cap)²)
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void capped_softmax_row(
    const float* x, float log_sum_exp, float scale, float cap, std::int64_t n, float* d) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    d[i] = scale * fast_exp(x[i] - log_sum_exp) * slope_of_cap(x[i], cap);
  }
}

// log(exp(a) + exp(b))
double log_of_sum(double a, double b) {
  const double larger = a > b ? a : b;
  return larger + std::log1p(std::exp(-std::abs(a - b)));
}

}  // namespace

void CpuBackend::run(const CrossEntropy& op) {
  const std::int64_t rows = op.logits.rows;
  const float* const logits = op.logits.f32();
  for_each_range(
      threads_, rows, rows_per_piece(op.logits.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int32_t target = op.target[row];
          const float* const x = logits + row * op.logits.stride;
          op.loss[row] = target < 0 ? 0.0f
                                    : static_cast<float>(log_sum_exp_row(x, op.logits.cols) -
                                                         static_cast<double>(x[target]));
          if (!op.largest.empty())
            op.largest[row] = target < 0 ? -1 : largest_of_row(x, op.logits.cols);
        }
      });
}

void CpuBackend::run(const LogSumExp& op) {
  const float* const x = op.x.f32();
  float* const sums = op.sums.f32();
  for_each_range(
      threads_, op.x.rows, rows_per_piece(op.x.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          float& sum = sums[row * op.sums.stride];
          const double here = log_sum_exp_row(x + row * op.x.stride, op.x.cols);
          sum =
              static_cast<float>(op.accumulate ? log_of_sum(static_cast<double>(sum), here) : here);
        }
      });
}

void CpuBackend::run(const CrossEntropyBackward& op) {
  const std::int64_t cols = op.logits.cols;
  const float* const logits = op.logits.f32();
  const float* const sums = op.log_sum_exp.f32();
  const auto* const targets = static_cast<const std::int32_t*>(op.target.data);
  float* const gradients = op.d_logits.f32();
  float* const losses = op.loss.f32();
  for_each_range(threads_, op.logits.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const float* const x = logits + row * op.logits.stride;
                     float* const d = gradients + row * op.d_logits.stride;
                     if (targets[row] < 0) {
                       std::fill_n(d, cols, 0.0f);
                       continue;
                     }
                     const float sum = sums[row * op.log_sum_exp.stride];
                     const std::int64_t target = targets[row] - op.first;
                     const bool here = target >= 0 && target < cols;
                     float at_target = op.scale;
                     if (here) {
                       losses[row * op.loss.stride] = sum - x[target];
                       if (op.soft_cap > 0.0f) at_target *= slope_of_cap(x[target], op.soft_cap);
                     }
                     if (op.soft_cap > 0.0f) {
                       capped_softmax_row(x, sum, op.scale, op.soft_cap, cols, d);
                     } else {
                       scaled_softmax_row(x, sum, op.scale, cols, d);
                     }
                     if (here) d[target] -= at_target;
                   }
                 });
}

}  // namespace roundhouse
