// Compiled without fused multiply-add (see CMakeLists.txt): values have to be the CPU's.
#include "kernels/activation_aware.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/groups.cuh"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

constexpr int kColumns = 32;  // of a block that sums columns
constexpr int kRows = 8;      // that it reads at a time
constexpr std::int64_t kTrialBytes = std::int64_t{64}
                                     << 20;  // of clip_groups' candidates at a time

struct ColumnParts {
  double at[kRows][kColumns];
};

// A thread sums every kRows-th row of its column, the block the threads of a column, in order.
template <class T>
__global__ void __launch_bounds__(kColumns* kRows) column_magnitudes_kernel(ColumnMagnitudes op) {
  ColumnParts& parts = shared_memory<ColumnParts>();
  const int x = static_cast<int>(threadIdx.x) % kColumns;
  const int y = static_cast<int>(threadIdx.x) / kColumns;
  const std::int64_t col = static_cast<std::int64_t>(blockIdx.x) * kColumns + x;
  double sum = 0.0;
  for (std::int64_t row = y; row < op.x.rows && col < op.x.cols; row += kRows) {
    sum += static_cast<double>(fabsf(load<T, 1>(op.x, row, col).at[0]));
  }
  parts.at[y][x] = sum;
  __syncthreads();
  if (y != 0 || col >= op.x.cols) return;
  for (int i = 1; i < kRows; ++i) sum += parts.at[i][x];
  static_cast<float*>(op.sums.data)[col] += static_cast<float>(sum);
}

// One block a row.
template <class A, class B>
__global__ void __launch_bounds__(kGroupThreads) compare_rows_kernel(CompareRows op) {
  const std::int64_t row = blockIdx.x;
  double sum = 0.0;
  for (std::int64_t col = threadIdx.x; col < op.a.cols; col += kGroupThreads) {
    const float a = load<A, 1>(op.a, row, col).at[0];
    const float b = load<B, 1>(op.b, row, col).at[0];
    const double difference = static_cast<double>(a - b);
    sum += op.product ? static_cast<double>(a) * static_cast<double>(b) : difference * difference;
  }
  sum = block_reduce<kGroupThreads>(sum, shared_memory<double[kGroupWarps]>(), Plus());
  if (threadIdx.x == 0) {
    static_cast<float*>(op.sums.data)[row * op.sums.stride] = static_cast<float>(sum);
  }
}

template <class W, class Out, int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    scaled_rounding_kernel(ScaledRounding op, std::int64_t groups) {
  const Team<kTeam> team(op.w, op.group_size, groups);
  if (!team.there()) return;
  const float* const s = static_cast<const float*>(op.column_scales.data) + team.first;
  const auto weight = [&](int i) { return load<W, 1>(op.w, team.row, team.first + i).at[0]; };
  const auto [lo, hi, finite] = range_of_values(team, [&](int i) { return weight(i) * s[i]; });
  const GridPoint point = grid_point_of(op.grid, op.bits, lo, hi);
  const bool usable = finite && is_usable(point.scale);
  const int qmax = (1 << op.bits) - 1;
#pragma unroll 2  // more would spill
  for (int i = team.thread; i < team.n; i += kTeam) {
    const float w = weight(i);
    float value = NAN;
    if (usable) {
      value = value_of(code_of(w * s[i], point.scale, point.zero, qmax), point.scale, point.zero) /
              s[i];
      if (op.error) value -= w;
    }
    store<Out, 1>(Floats<1>{{value}}, op.out, team.row, team.first + i);
  }
}

struct Fold {
  Matrix w;
  const float* factors;   // or null
  const float* divisors;  // or null
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    float& value = static_cast<float*>(w.data)[row * w.stride + col];
    if (factors != nullptr) value *= factors[col];
    if (divisors != nullptr) value /= divisors[row];
  }
};

// What clip_groups' kernels know of one group: its columns of some rows of w.
struct ClipTask {
  Matrix w;
  const float* scales;
  Grid grid;
  int bits;
  int candidates;
  int divisions;
};

__device__ float clamped(float w, float bound) {
  const float low = w < -bound ? -bound : w;
  return low > bound ? bound : low;
}
__device__ float bound_of(float largest, int j, int divisions) {
  return largest * (1.0f - static_cast<float>(j) / static_cast<float>(divisions));
}
template <int kTeam>
__device__ float largest_of(const Team<kTeam>& team, const float* w) {
  const auto [lo, hi, finite] = range_of_values(team, [&](int i) { return w[i]; });
  return finite ? fmaxf(fabsf(lo), fabsf(hi)) : NAN;
}

// One team a row: row r * candidates + j of deltas becomes that of candidate j.
template <int kTeam>
__global__ void __launch_bounds__(kGroupThreads) clip_deltas_kernel(ClipTask task, float* deltas) {
  const Team<kTeam> team(task.w, task.w.cols, 1);
  if (!team.there()) return;
  const float* const w = static_cast<const float*>(task.w.data) + team.row * task.w.stride;
  const float largest = largest_of(team, w);
  const int qmax = (1 << task.bits) - 1;
  for (int j = 0; j < task.candidates; ++j) {
    const float bound = bound_of(largest, j, task.divisions);
    const auto [lo, hi, finite] =
        range_of_values(team, [&](int i) { return clamped(w[i], bound); });
    const GridPoint point = grid_point_of(task.grid, task.bits, lo, hi);
    const bool usable = finite && is_usable(point.scale);
    float* const delta = deltas + (team.row * task.candidates + j) * team.n;
#pragma unroll 2  // more would spill
    for (int i = team.thread; i < team.n; i += kTeam) {
      const int code = code_of(clamped(w[i], bound), point.scale, point.zero, qmax);
      const float value = value_of(code, point.scale, point.zero);
      delta[i] = usable ? (value - w[i]) / task.scales[i] : NAN;
    }
  }
}

// One team a row, with the deltas and their products with the Gram matrix.
template <int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    clip_choice_kernel(ClipTask task, const float* deltas, const float* products, Matrix choices,
                       Matrix errors) {
  const Team<kTeam> team(task.w, task.w.cols, 1);
  if (!team.there()) return;
  int best = 0;
  float least = INFINITY;
  float first = NAN;
  for (int j = 0; j < task.candidates; ++j) {
    const std::int64_t trial = (team.row * task.candidates + j) * team.n;
    double sum = 0.0;
    for (int i = team.thread; i < team.n; i += kTeam) {
      sum += static_cast<double>(deltas[trial + i]) * static_cast<double>(products[trial + i]);
    }
    const float error = static_cast<float>(team.reduce(sum, Plus()));
    if (j == 0) first = error;
    if (error < least) {
      least = error;
      best = j;
    }
  }
  float* const w = static_cast<float*>(task.w.data) + team.row * task.w.stride;
  const float bound = bound_of(largest_of(team, w), best, task.divisions);
  for (int i = team.thread; i < team.n; i += kTeam) w[i] = clamped(w[i], bound);
  if (team.thread != 0) return;
  static_cast<std::uint8_t*>(choices.data)[team.row * choices.stride] =
      static_cast<std::uint8_t>(best);
  float* const found = static_cast<float*>(errors.data) + team.row * errors.stride;
  found[0] = first;
  found[1] = least;
}

const float* vector_or_none(const ConstMatrix& m) { return m.cols == 0 ? nullptr : m.f32(); }

}  // namespace

void CudaBackend::run(const ColumnMagnitudes& op) {
  with_float_type(op.x.type, [&](auto type) {
    launch(column_magnitudes_kernel<typename decltype(type)::type>,
           {.grid = blocks_for(op.x.cols, kColumns),
            .threads = kColumns * kRows,
            .shared_bytes = sizeof(ColumnParts),
            .stream = device_->stream()},
           op);
  });
}

void CudaBackend::run(const CompareRows& op) {
  with_activation_type(op.a.type, [&](auto a) {
    with_activation_type(op.b.type, [&](auto b) {
      launch(compare_rows_kernel<typename decltype(a)::type, typename decltype(b)::type>,
             {.grid = blocks_for(op.a.rows),
              .threads = kGroupThreads,
              .shared_bytes = sizeof(double[kGroupWarps]),
              .stream = device_->stream()},
             op);
    });
  });
}

void CudaBackend::run(const ScaledRounding& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  check_columns(op.w.cols);
  with_activation_type(op.w.type, [&](auto w) {
    with_activation_type(op.out.type, [&](auto out) {
      using W = typename decltype(w)::type;
      using Out = typename decltype(out)::type;
      launch(teams_are_warps(op.w, op.group_size) ? scaled_rounding_kernel<W, Out, kWarp>
                                                  : scaled_rounding_kernel<W, Out, kGroupThreads>,
             launch_of_groups(op.w, op.group_size, groups, device_->stream()), op, groups);
    });
  });
}

void CudaBackend::run(const FoldScales& op) {
  for_each_element(op.w.rows, op.w.cols, 1, device_->stream(),
                   Fold{op.w, vector_or_none(op.column_factors), vector_or_none(op.row_divisors)});
}

void CudaBackend::run(const GroupGrams& op) {
  const std::int64_t cols = op.x.cols;
  for (std::int64_t group = 0; group < groups_of(cols, op.group_size); ++group) {
    const std::int64_t first = group * op.group_size;
    const std::int64_t end = std::min(first + op.group_size, cols);
    const ConstMatrix x = op.x.col_range(first, end);
    matmul({.a = x,
            .transpose_a = true,
            .b = x,
            .c = op.grams.row_range(first, end).col_range(0, end - first),
            .beta = 1.0f});
  }
}

// Some rows of one group at a time: all candidates go through one matrix product.
void CudaBackend::run(const ClipGroups& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  const std::int64_t groups = groups_of(cols, op.group_size);
  check_columns(cols);
  const std::int64_t widest = std::min(op.group_size, cols);
  const std::int64_t row_bytes = widest * op.candidates * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t together = std::clamp<std::int64_t>(kTrialBytes / row_bytes, 1, rows);
  const auto room = static_cast<std::size_t>(together * row_bytes);
  const Buffer deltas = allocate(room), products = allocate(room);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = group * op.group_size;
    const std::int64_t n = std::min(op.group_size, cols - first);
    for (std::int64_t begin = 0; begin < rows; begin += together) {
      const std::int64_t end = std::min(begin + together, rows);
      const ClipTask task{op.w.row_range(begin, end).col_range(first, first + n),
                          op.column_scales.f32() + first,
                          op.grid,
                          op.bits,
                          op.candidates,
                          op.divisions};
      const std::int64_t trials = (end - begin) * op.candidates;
      const Matrix delta{deltas.get(), DType::kF32, trials, n, n};
      const Matrix product{products.get(), DType::kF32, trials, n, n};
      const bool warps = teams_are_warps(task.w, n);
      const Launch how = launch_of_groups(task.w, n, 1, device_->stream());
      launch(warps ? clip_deltas_kernel<kWarp> : clip_deltas_kernel<kGroupThreads>, how, task,
             delta.f32());
      matmul({.a = delta, .b = op.grams.row_range(first, first + n).col_range(0, n), .c = product});
      launch(warps ? clip_choice_kernel<kWarp> : clip_choice_kernel<kGroupThreads>, how, task,
             delta.f32(), product.f32(),
             op.choices.row_range(begin, end).col_range(group, group + 1),
             op.errors.row_range(begin, end).col_range(2 * group, 2 * group + 2));
    }
  }
}

}  // namespace roundhouse
