#include "kernels/learned_rounding.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/numerical_error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_range.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector_math.h"
#include "kernels/learned_point.h"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void round_values(
    const float* w, const float* v, std::int64_t n, float scale, int zero, int qmax,
    float* values) {
  for (std::int64_t i = 0; i < n; ++i) {
    values[i] = value_of(code_at(w[i] / scale + v[i], zero, qmax), scale, zero);
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void round_codes(
    const float* w, const float* v, std::int64_t n, float scale, int zero, int qmax,
    std::uint8_t* codes) {
  for (std::int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<std::uint8_t>(code_at(w[i] / scale + v[i], zero, qmax));
  }
}

// sum G D and sum G (1 - m) over a group.
struct GroupSums {
  double residual, clipped;
};

// Updates v of a group: float32 in 16 lanes inside a chunk, double over chunks.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] GroupSums learn_group(
    const float* w, const float* gradient, std::int64_t n, const LearnedPoint& point, int qmax,
    float rate, float* v) {
  constexpr std::int64_t kChunk = 512;
  alignas(64) float residual[kChunk];
  alignas(64) float clipped[kChunk];
  const float scale = point.scale, zero = static_cast<float>(point.zero), c = point.clipped;
  const float top = static_cast<float>(qmax);
  const float up = scale > 0.0f ? rate : -rate;  // what v loses where the gradient is positive
  GroupSums sums{0.0, 0.0};
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t size = n - begin < kChunk ? n - begin : kChunk;
    const float* const some_w = w + begin;
    const float* const some_gradient = gradient + begin;
    float* const some_v = v + begin;
    for (std::int64_t i = 0; i < size; ++i) {
      const float quotient = some_w[i] / scale, g = some_gradient[i];
      const float code = rintf(quotient + some_v[i]) + zero;
      const float above = code > 0.0f ? code : 0.0f;
      const float kept = above < top ? above : top;
      const bool inside = kept == code;
      residual[i] = g * (kept - zero - (inside ? quotient : c));
      clipped[i] = inside ? 0.0f : g;
      const float step = g > 0.0f ? up : g < 0.0f ? -up : 0.0f;
      some_v[i] -= inside ? step : 0.0f;
    }
    const std::int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
    for (std::int64_t i = size; i < padded; ++i) residual[i] = clipped[i] = 0.0f;
    Lanes residual_lanes = {}, clipped_lanes = {};
    for (std::int64_t i = 0; i < padded; i += kLanes) {
      residual_lanes += *reinterpret_cast<const Lanes*>(residual + i);
      clipped_lanes += *reinterpret_cast<const Lanes*>(clipped + i);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      sums.residual += static_cast<double>(residual_lanes[lane]);
      sums.clipped += static_cast<double>(clipped_lanes[lane]);
    }
  }
  return sums;
}

float stepped(float value, double gradient, float rate) {
  const float step = gradient > 0.0 ? rate : gradient < 0.0 ? -rate : 0.0f;
  return std::clamp(value - step, 0.0f, 1.0f);
}

// Calls work(row, group, first column, columns, point) for every group.
template <class Work>
void for_each_group(ThreadPool& threads, const LearnedRounding& r, const Work& work) {
  const std::int64_t groups = groups_of(r.w.cols, r.group_size);
  for_each_range(
      threads, r.w.rows, rows_per_piece(r.w.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const float* const lo = r.lo.f32() + row * r.lo.stride;
          const float* const hi = r.hi.f32() + row * r.hi.stride;
          const float* const alpha = r.alpha.f32() + row * r.alpha.stride;
          const float* const beta = r.beta.f32() + row * r.beta.stride;
          for (std::int64_t group = 0; group < groups; ++group) {
            const std::int64_t first = group * r.group_size;
            work(row, group, first, std::min(r.group_size, r.w.cols - first),
                 learned_point_of(r.grid, r.bits, lo[group], hi[group], alpha[group], beta[group]));
          }
        }
      });
}

}  // namespace

void CpuBackend::run(const FindRanges& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  const float* const w = op.w.f32();
  float* const lo = op.lo.f32();
  float* const hi = op.hi.f32();
  for_each_range(threads_, op.w.rows, rows_per_piece(op.w.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     for (std::int64_t group = 0; group < groups; ++group) {
                       const std::int64_t first = group * op.group_size;
                       const std::int64_t n = std::min(op.group_size, op.w.cols - first);
                       const auto [least, most] = range_of(w + row * op.w.stride + first, n);
                       try {
                         (void)make_grid_point(op.grid, op.bits, least, most);
                       } catch (const NumericalError& e) {
                         throw NumericalError(
                             fmt::format("row {}, columns from {}: {}", row, first, e.what()));
                       }
                       lo[row * op.lo.stride + group] = std::min(least, 0.0f);
                       hi[row * op.hi.stride + group] = std::max(most, 0.0f);
                     }
                   }
                 });
}

void CpuBackend::run(const RoundLearned& op) {
  const LearnedRounding& r = op.rounding;
  const bool gives_values = op.values.data != nullptr, gives_codes = op.codes.data != nullptr;
  const int qmax = (1 << r.bits) - 1;
  const float* const all_w = r.w.f32();
  const float* const all_v = r.v.f32();
  float* const values = gives_values ? op.values.f32() : nullptr;
  float* const scales = gives_codes ? op.scales.f32() : nullptr;
  auto* const codes = static_cast<std::uint8_t*>(op.codes.data);
  auto* const zeros = static_cast<std::uint8_t*>(op.zeros.data);
  for_each_group(threads_, r,
                 [&](std::int64_t row, std::int64_t group, std::int64_t first, std::int64_t n,
                     const LearnedPoint& point) {
                   const float* const w = all_w + row * r.w.stride + first;
                   const float* const v = all_v + row * r.v.stride + first;
                   if (gives_values) {
                     round_values(w, v, n, point.scale, point.zero, qmax,
                                  values + row * op.values.stride + first);
                   }
                   if (gives_codes) {
                     round_codes(w, v, n, point.scale, point.zero, qmax,
                                 codes + row * op.codes.stride + first);
                     scales[row * op.scales.stride + group] = point.scale;
                     zeros[row * op.zeros.stride + group] = static_cast<std::uint8_t>(point.zero);
                   }
                 });
}

void CpuBackend::run(const LearnRounding& op) {
  const LearnedRounding& r = op.rounding;
  const int qmax = (1 << r.bits) - 1;
  const float* const w = r.w.f32();
  const float* const gradient = op.gradient.f32();
  float* const v = r.v.f32();
  float* const alpha = r.alpha.f32();
  float* const beta = r.beta.f32();
  for_each_group(threads_, r,
                 [&](std::int64_t row, std::int64_t group, std::int64_t first, std::int64_t n,
                     const LearnedPoint& point) {
                   const GroupSums sums = learn_group(
                       w + row * r.w.stride + first, gradient + row * op.gradient.stride + first, n,
                       point, qmax, op.rate, v + row * r.v.stride + first);
                   if (op.range_rate == 0.0f) return;
                   const double by_alpha =
                       sums.residual * static_cast<double>(point.scale_by_alpha) +
                       sums.clipped * static_cast<double>(point.clipped_by_alpha);
                   const double by_beta = sums.residual * static_cast<double>(point.scale_by_beta);
                   float& a = alpha[row * r.alpha.stride + group];
                   float& b = beta[row * r.beta.stride + group];
                   a = stepped(a, by_alpha, op.range_rate);
                   b = stepped(b, by_beta, op.range_rate);
                 });
}

}  // namespace roundhouse
