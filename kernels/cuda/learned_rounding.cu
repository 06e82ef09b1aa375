// Compiled without fused multiply-add (see CMakeLists.txt): codes have to be the CPU's.
#include "kernels/learned_rounding.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/groups.cuh"
#include "kernels/learned_point.h"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

__device__ float& element(const Matrix& m, std::int64_t row, std::int64_t col) {
  return static_cast<float*>(m.data)[row * m.stride + col];
}
__device__ float element(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return static_cast<const float*>(m.data)[row * m.stride + col];
}

template <class T, int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    find_ranges_kernel(FindRanges op, std::int64_t groups, BadGroups::Index* least_bad) {
  const Team<kTeam> team(op.w, op.group_size, groups);
  if (!team.there()) return;
  const auto [lo, hi, finite] = range_of<T>(team, op.w);
  if (team.thread != 0) return;
  element(op.lo, team.row, team.group) = Smaller()(lo, 0.0f);
  element(op.hi, team.row, team.group) = Larger()(hi, 0.0f);
  if (!finite || !is_usable(grid_point_of(op.grid, op.bits, lo, hi).scale)) {
    atomicMin(least_bad, static_cast<BadGroups::Index>(team.index));
  }
}

template <int kTeam>
__device__ LearnedPoint point_of(const Team<kTeam>& team, const LearnedRounding& r) {
  return learned_point_of(
      r.grid, r.bits, element(r.lo, team.row, team.group), element(r.hi, team.row, team.group),
      element(r.alpha, team.row, team.group), element(r.beta, team.row, team.group));
}

// `values`, and `codes` with `scales` and `zeros`, may be empty.
template <class T, int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    round_learned_kernel(LearnedRounding r, std::int64_t groups, Matrix values, Matrix codes,
                         Matrix scales, Matrix zeros) {
  const Team<kTeam> team(r.w, r.group_size, groups);
  if (!team.there()) return;
  const LearnedPoint point = point_of(team, r);
  const int qmax = (1 << r.bits) - 1;
  for (int i = team.thread; i < team.n; i += kTeam) {
    const std::int64_t col = team.first + i;
    const float w = load<T, 1>(r.w, team.row, col).at[0];
    const int code = code_at(w / point.scale + element(r.v, team.row, col), point.zero, qmax);
    if (values.data != nullptr) {
      const Floats<1> value{{value_of(code, point.scale, point.zero)}};
      store<T, 1>(value, values, team.row, col);
    }
    if (codes.data != nullptr) {
      static_cast<std::uint8_t*>(codes.data)[team.row * codes.stride + col] =
          static_cast<std::uint8_t>(code);
    }
  }
  if (codes.data == nullptr || team.thread != 0) return;
  element(scales, team.row, team.group) = point.scale;
  static_cast<std::uint8_t*>(zeros.data)[team.row * zeros.stride + team.group] =
      static_cast<std::uint8_t>(point.zero);
}

__device__ float stepped(float value, double gradient, float rate) {
  const float step = gradient > 0.0 ? rate : gradient < 0.0 ? -rate : 0.0f;
  const float moved = value - step;
  return moved < 0.0f ? 0.0f : moved > 1.0f ? 1.0f : moved;
}

// A thread sums in F32, the team in double.
template <class T, int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    learn_rounding_kernel(LearnedRounding r, std::int64_t groups, ConstMatrix gradient, float rate,
                          float range_rate) {
  const Team<kTeam> team(r.w, r.group_size, groups);
  if (!team.there()) return;
  const LearnedPoint point = point_of(team, r);
  const float zero = static_cast<float>(point.zero);
  const float top = static_cast<float>((1 << r.bits) - 1);
  const float up =
      point.scale > 0.0f ? rate : -rate;  // what v loses where the gradient is positive
  float residual = 0.0f;                  // sum G D
  float clipped = 0.0f;                   // sum G (1 - m)
  for (int i = team.thread; i < team.n; i += kTeam) {
    const std::int64_t col = team.first + i;
    const float quotient = load<T, 1>(r.w, team.row, col).at[0] / point.scale;
    const float g = element(gradient, team.row, col);
    float& v = element(r.v, team.row, col);
    const float code = rintf(quotient + v) + zero;
    const float above = code > 0.0f ? code : 0.0f;
    const float kept = above < top ? above : top;
    const bool inside = kept == code;
    residual += g * (kept - zero - (inside ? quotient : point.clipped));
    clipped += inside ? 0.0f : g;
    const float step = g > 0.0f ? up : g < 0.0f ? -up : 0.0f;
    if (inside) v -= step;
  }
  if (range_rate == 0.0f) return;
  const double residual_sum = team.reduce(static_cast<double>(residual), Plus());
  const double clipped_sum = team.reduce(static_cast<double>(clipped), Plus());
  if (team.thread != 0) return;
  float& alpha = element(r.alpha, team.row, team.group);
  float& beta = element(r.beta, team.row, team.group);
  alpha = stepped(alpha,
                  residual_sum * static_cast<double>(point.scale_by_alpha) +
                      clipped_sum * static_cast<double>(point.clipped_by_alpha),
                  range_rate);
  beta = stepped(beta, residual_sum * static_cast<double>(point.scale_by_beta), range_rate);
}

}  // namespace

void CudaBackend::run(const FindRanges& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  check_columns(op.w.cols);
  BadGroups bad(*device_);
  with_activation_type(op.w.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(teams_are_warps(op.w, op.group_size) ? find_ranges_kernel<T, kWarp>
                                                : find_ranges_kernel<T, kGroupThreads>,
           launch_of_groups(op.w, op.group_size, groups, device_->stream()), op, groups,
           bad.least());
  });
  bad.check(op.w, op.group_size, groups, op.grid, op.bits);
}

void CudaBackend::run(const RoundLearned& op) {
  const LearnedRounding& r = op.rounding;
  const std::int64_t groups = groups_of(r.w.cols, r.group_size);
  check_columns(r.w.cols);
  with_activation_type(r.w.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(teams_are_warps(r.w, r.group_size) ? round_learned_kernel<T, kWarp>
                                              : round_learned_kernel<T, kGroupThreads>,
           launch_of_groups(r.w, r.group_size, groups, device_->stream()), r, groups, op.values,
           op.codes, op.scales, op.zeros);
  });
}

void CudaBackend::run(const LearnRounding& op) {
  const LearnedRounding& r = op.rounding;
  const std::int64_t groups = groups_of(r.w.cols, r.group_size);
  check_columns(r.w.cols);
  with_activation_type(r.w.type, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(teams_are_warps(r.w, r.group_size) ? learn_rounding_kernel<T, kWarp>
                                              : learn_rounding_kernel<T, kGroupThreads>,
           launch_of_groups(r.w, r.group_size, groups, device_->stream()), r, groups, op.gradient,
           op.rate, op.range_rate);
  });
}

}  // namespace roundhouse
