#include <algorithm>
#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_range.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weight_group.h"
#include "kernels/grid_point.h"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

// Sums over rows are taken in float32 over a slab and the slabs added up.
constexpr std::int64_t kSlab = 256;
// Columns of one piece of a sum over rows: a few cache lines, and its partial sums in registers and the first-level cache.
constexpr std::int64_t kColumns = 64;

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void add_magnitudes(
    const float* x, std::int64_t stride, std::int64_t rows, std::int64_t cols, float* sums) {
  for (std::int64_t begin = 0; begin < rows; begin += kSlab) {
    const std::int64_t end = begin + kSlab < rows ? begin + kSlab : rows;
    float slab[kColumns] = {};
    for (std::int64_t row = begin; row < end; ++row) {
      const float* const values = x + row * stride;
#pragma omp simd
      for (std::int64_t col = 0; col < cols; ++col) slab[col] += fabsf(values[col]);
    }
    for (std::int64_t col = 0; col < cols; ++col) sums[col] += slab[col];
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void subtract(const float* w,
                                                                                    std::int64_t n,
                                                                                    float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] -= w[i];
}

float squared_distance(const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t kChunk = 1024;
  float difference[kChunk];
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t size = std::min(kChunk, n - begin);
    std::copy_n(a + begin, size, difference);
    subtract(b + begin, size, difference);
    sum += dot_product(difference, difference, size);
  }
  return static_cast<float>(sum);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void multiply(const float* w,
                                                                                    const float* s,
                                                                                    std::int64_t n,
                                                                                    float* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = w[i] * s[i];
}

// scaled = w s, rounded on `point` and divided by s again.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void round_scaled(
    const float* scaled, const float* s, std::int64_t n, GridPoint point, int qmax, float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const int code = code_of(scaled[i], point.scale, point.zero, qmax);
    out[i] = value_of(code, point.scale, point.zero) / s[i];
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void divide(float* w,
                                                                                  std::int64_t n,
                                                                                  float by) {
  for (std::int64_t i = 0; i < n; ++i) w[i] /= by;
}

}  // namespace

void CpuBackend::run(const ColumnMagnitudes& op) {
  const float* const x = op.x.f32();
  float* const sums = op.sums.f32();
  for_each_range(threads_, op.x.cols, kColumns, [&](std::int64_t begin, std::int64_t end) {
    add_magnitudes(x + begin, op.x.stride, op.x.rows, end - begin, sums + begin);
  });
}

void CpuBackend::run(const CompareRows& op) {
  const float* const a = op.a.f32();
  const float* const b = op.b.f32();
  float* const sums = op.sums.f32();
  for_each_range(
      threads_, op.a.rows, rows_per_piece(op.a.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const left = a + row * op.a.stride;
          const float* const right = b + row * op.b.stride;
          sums[row * op.sums.stride] = op.product
                                           ? static_cast<float>(dot_product(left, right, op.a.cols))
                                           : squared_distance(left, right, op.a.cols);
        }
      });
}

void CpuBackend::run(const ScaledRounding& op) {
  const std::int64_t cols = op.w.cols;
  const std::int64_t groups = groups_of(cols, op.group_size);
  const float* const w = op.w.f32();
  const float* const s = op.column_scales.f32();
  float* const all_out = op.out.f32();
  const int qmax = (1 << op.bits) - 1;
  for_each_range(
      threads_, op.w.rows, rows_per_piece(cols), [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> scaled(static_cast<std::size_t>(std::min(op.group_size, cols)));
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const in = w + row * op.w.stride;
          float* const out = all_out + row * op.out.stride;
          for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t first = group * op.group_size;
            const std::int64_t n = std::min(op.group_size, cols - first);
            multiply(in + first, s + first, n, scaled.data());
            const auto [lo, hi] = range_of(scaled.data(), n);
            const GridPoint point = grid_point_of(op.grid, op.bits, lo, hi);
            if (!is_usable(point.scale) || !(hi - lo >= 0.0f)) {
              std::fill_n(out + first, n, std::numeric_limits<float>::quiet_NaN());
            } else {
              round_scaled(scaled.data(), s + first, n, point, qmax, out + first);
              if (op.error) subtract(in + first, n, out + first);
            }
          }
        }
      });
}

void CpuBackend::run(const FoldScales& op) {
  const bool columns = op.column_factors.cols > 0, divisors = op.row_divisors.cols > 0;
  const float* const factors = columns ? op.column_factors.f32() : nullptr;
  const float* const by = divisors ? op.row_divisors.f32() : nullptr;
  float* const w = op.w.f32();
  for_each_range(threads_, op.w.rows, rows_per_piece(op.w.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     float* const values = w + row * op.w.stride;
                     if (columns) multiply(values, factors, op.w.cols, values);
                     if (divisors) divide(values, op.w.cols, by[row]);
                   }
                 });
}

}  // namespace roundhouse
