#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "base/numerical_error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_range.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/cpu/weight_group.h"
#include "kernels/grid_point.h"
#include "kernels/operands.h"

namespace roundhouse {

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double dot_product(
    const float* a, const float* b, std::int64_t n) {
  constexpr std::int64_t kChunk = 1024;
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = begin + kChunk < n ? begin + kChunk : n;
    Lanes lanes = {};
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      lanes += *reinterpret_cast<const Lanes*>(a + i) * *reinterpret_cast<const Lanes*>(b + i);
    }
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[lane]);
    for (; i < end; ++i) sum += static_cast<double>(a[i] * b[i]);
  }
  return sum;
}

namespace {

// sum |value - w|^norm over a group: float32 in 16 lanes inside a chunk, double over chunks.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double rounding_error(
    const float* w, std::int64_t n, GridPoint point, int qmax, float norm) {
  constexpr std::int64_t kChunk = 512;
  float error[kChunk];
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t size = n - begin < kChunk ? n - begin : kChunk;
    const float* const part = w + begin;
    for (std::int64_t i = 0; i < size; ++i) {
      const int code = code_of(part[i], point.scale, point.zero, qmax);
      error[i] = fast_pow(fabsf(value_of(code, point.scale, point.zero) - part[i]), norm);
    }
    const std::int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t i = size; i < padded; ++i) error[i] = 0.0f;
    Lanes lanes = {};
    for (std::int64_t i = 0; i < padded; i += kLanes) {
      lanes += *reinterpret_cast<const Lanes*>(error + i);
    }
    for (int lane = 0; lane < kLanes; ++lane) sum += static_cast<double>(lanes[lane]);
  }
  return sum;
}

// The plain grid of a group, or the best of the shrunk ones.
GridPoint best_grid_point(const FindGrid& op, const float* w, std::int64_t n) {
  const auto [lo, hi] = range_of(w, n);
  GridPoint best = make_grid_point(op.grid, op.bits, lo, hi);
  if (op.clip.steps == 0) return best;
  const int qmax = (1 << op.bits) - 1;
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < op.clip.steps; ++i) {
    const float p = static_cast<float>(1.0 - 0.01 * i);
    const GridPoint point = grid_point_of(op.grid, op.bits, p * lo, p * hi);
    const double error = rounding_error(w, n, point, qmax, op.clip.norm);
    if (error < least) {
      least = error;
      best = point;
    }
  }
  return best;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void round_group(
    const float* w, std::int64_t n, float scale, int zero, int qmax, std::uint8_t* codes) {
  for (std::int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<std::uint8_t>(code_of(w[i], scale, zero, qmax));
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void dequantize_group(
    const std::uint8_t* codes, std::int64_t n, float scale, int zero, float* w) {
  for (std::int64_t i = 0; i < n; ++i) w[i] = value_of(codes[i], scale, zero);
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void dequantize_gathered(
    const std::uint8_t* codes, std::int64_t n, const float* scales, const std::uint8_t* zeros,
    const std::int32_t* groups, float* w) {
  for (std::int64_t i = 0; i < n; ++i) {
    w[i] = value_of(codes[i], scales[groups[i]], zeros[groups[i]]);
  }
}

}  // namespace

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] GroupRange range_of(
    const float* w, std::int64_t n) {
  float lo = w[0];
  float hi = w[0];
  bool has_nan = false;
  std::int64_t done = 0;
  if (n >= kLanes) {
    Lanes low = *reinterpret_cast<const Lanes*>(w);
    Lanes high = low;
    Lanes nan_where_nan = low - low;
    for (; done + kLanes <= n; done += kLanes) {
      const Lanes x = *reinterpret_cast<const Lanes*>(w + done);
      low = x < low ? x : low;
      high = x > high ? x : high;
      nan_where_nan += x - x;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      lo = low[lane] < lo ? low[lane] : lo;
      hi = high[lane] > hi ? high[lane] : hi;
      has_nan = has_nan || nan_where_nan[lane] != 0.0f;
    }
  }
  for (; done < n; ++done) {
    lo = w[done] < lo ? w[done] : lo;
    hi = w[done] > hi ? w[done] : hi;
    has_nan = has_nan || w[done] != w[done];
  }
  if (has_nan) lo = hi = std::numeric_limits<float>::quiet_NaN();
  return {lo, hi};
}

void CpuBackend::run(const FindGrid& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  const float* const w = op.w.f32();
  const std::int64_t step = op.clip.steps > 0 ? 1 : rows_per_piece(op.w.cols);
  for_each_range(threads_, op.w.rows, step, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      float* const scales = op.scales.f32() + row * op.scales.stride;
      std::uint8_t* const zeros = static_cast<std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
      for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t first = group * op.group_size;
        const std::int64_t size = std::min(op.group_size, op.w.cols - first);
        try {
          const GridPoint point = best_grid_point(op, w + row * op.w.stride + first, size);
          scales[group] = point.scale;
          zeros[group] = static_cast<std::uint8_t>(point.zero);
        } catch (const NumericalError& e) {
          throw NumericalError(fmt::format("row {}, columns from {}: {}", row, first, e.what()));
        }
      }
    }
  });
}

void CpuBackend::run(const RoundToGrid& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  const float* const w = op.w.f32();
  const float* const all_scales = op.scales.f32();
  const int qmax = (1 << op.bits) - 1;
  for_each_range(
      threads_, op.w.rows, rows_per_piece(op.w.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const scales = all_scales + row * op.scales.stride;
          const std::uint8_t* const zeros =
              static_cast<const std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
          std::uint8_t* const codes =
              static_cast<std::uint8_t*>(op.codes.data) + row * op.codes.stride;
          for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t first = group * op.group_size;
            round_group(w + row * op.w.stride + first, std::min(op.group_size, op.w.cols - first),
                        scales[group], zeros[group], qmax, codes + first);
          }
        }
      });
}

void CpuBackend::run(const Dequantize& op) {
  const std::int64_t rows = op.codes.rows;
  const std::int64_t cols = op.codes.cols;
  const bool gathered = op.gathered();
  const std::int64_t groups = gathered ? op.scales.cols : groups_of(cols, op.group_size);
  const std::int32_t* const group_of_column =
      gathered ? static_cast<const std::int32_t*>(op.group_of_column.data) : nullptr;
  if (gathered) {
    require(std::all_of(group_of_column, group_of_column + cols,
                        [&](std::int32_t g) { return 0 <= g && g < groups; }),
            "dequantize: a column names a group that is not there");
  }
  const float* const all_scales = op.scales.f32();
  for_each_range(threads_, rows, rows_per_piece(cols), [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> converted(op.w.type == DType::kF32 ? 0 : static_cast<std::size_t>(cols));
    for (std::int64_t row = begin; row < end; ++row) {
      const std::uint8_t* const codes =
          static_cast<const std::uint8_t*>(op.codes.data) + row * op.codes.stride;
      const float* const scales = all_scales + row * op.scales.stride;
      const std::uint8_t* const zeros =
          static_cast<const std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
      void* const target = op.w.row_range(row, row + 1).data;
      float* const w = converted.empty() ? static_cast<float*>(target) : converted.data();
      if (gathered) {
        dequantize_gathered(codes, cols, scales, zeros, group_of_column, w);
      } else {
        for (std::int64_t group = 0; group < groups; ++group) {
          const std::int64_t first = group * op.group_size;
          dequantize_group(codes + first, std::min(op.group_size, cols - first), scales[group],
                           zeros[group], w + first);
        }
      }
      if (!converted.empty()) {
        convert(DType::kF32, w, op.w.type, target, static_cast<std::size_t>(cols));
      }
    }
  });
}

void CpuBackend::run(const RowErrors& op) {
  const bool has_value = op.value.data != nullptr;
  const bool weighted = op.column_weights.data != nullptr;
  const float* const all_w = op.w.f32();
  const float* const all_values = has_value ? op.value.f32() : nullptr;
  const float* const weights = weighted ? op.column_weights.f32() : nullptr;
  float* const sums = op.sums.f32();
  for_each_range(
      threads_, op.w.rows, rows_per_piece(op.w.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const w = all_w + row * op.w.stride;
          const float* const value = has_value ? all_values + row * op.value.stride : nullptr;
          double sum = 0;
          for (std::int64_t col = 0; col < op.w.cols; ++col) {
            const double d = static_cast<double>(w[col]) - (value ? value[col] : 0.0f);
            sum += 0.5 * d * d * (weights ? weights[col] : 1.0f);
          }
          sums[row * op.sums.stride] = static_cast<float>(sum);
        }
      });
}

}  // namespace roundhouse
