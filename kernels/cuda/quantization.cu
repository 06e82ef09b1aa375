// Compiled without fused multiply-add (see CMakeLists.txt): codes have to be the CPU's.
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "base/numerical_error.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/groups.cuh"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// sum |value - w|^norm over a group.
template <int kTeam>
__device__ float rounding_error(const Team<kTeam>& team, const float* w, GridPoint point, int qmax,
                                float norm) {
  float error = 0.0f;
  for (int i = team.thread; i < team.n; i += kTeam) {
    const int code = code_of(w[i], point.scale, point.zero, qmax);
    error += powf(fabsf(value_of(code, point.scale, point.zero) - w[i]), norm);
  }
  return team.reduce(error, Plus());
}

template <int kTeam>
__global__ void __launch_bounds__(kGroupThreads)
    find_grid_kernel(FindGrid op, std::int64_t groups, BadGroups::Index* least_bad) {
  const Team<kTeam> team(op.w, op.group_size, groups);
  if (!team.there()) return;
  const auto [lo, hi, finite] = range_of<float>(team, op.w);
  GridPoint best = grid_point_of(op.grid, op.bits, lo, hi);
  const bool good = finite && is_usable(best.scale);
  const float* const w = static_cast<const float*>(op.w.data) + team.row * op.w.stride + team.first;
  const int qmax = (1 << op.bits) - 1;
  float least = INFINITY;
  for (int i = 0; i < op.clip.steps && good; ++i) {
    const float p = static_cast<float>(1.0 - 0.01 * i);
    const GridPoint point = grid_point_of(op.grid, op.bits, p * lo, p * hi);
    const float error = rounding_error(team, w, point, qmax, op.clip.norm);
    if (error < least) {
      least = error;
      best = point;
    }
  }
  if (team.thread != 0) return;
  static_cast<float*>(op.scales.data)[team.row * op.scales.stride + team.group] = best.scale;
  static_cast<std::uint8_t*>(op.zeros.data)[team.row * op.zeros.stride + team.group] =
      static_cast<std::uint8_t>(best.zero);
  if (!good) atomicMin(least_bad, static_cast<BadGroups::Index>(team.index));
}

template <int kWidth>
using Bytes = Pack<std::uint8_t, kWidth>;

// A pack lies in one group.
template <int kWidth>
struct Round {
  RoundToGrid op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const std::int64_t group = static_cast<int>(col) / static_cast<int>(op.group_size);
    const float scale = static_cast<const float*>(op.scales.data)[row * op.scales.stride + group];
    const int zero = static_cast<const std::uint8_t*>(op.zeros.data)[row * op.zeros.stride + group];
    const Floats<kWidth> w = load<float, kWidth>(op.w, row, col);
    Bytes<kWidth> codes;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      codes.at[i] = static_cast<std::uint8_t>(code_of(w.at[i], scale, zero, (1 << op.bits) - 1));
    }
    *reinterpret_cast<Bytes<kWidth>*>(static_cast<std::uint8_t*>(op.codes.data) +
                                      row * op.codes.stride + col) = codes;
  }
};

// `group_of_column` may be null: then a pack lies in one group.
template <class T, int kWidth>
struct ToValues {
  Dequantize op;
  const std::int32_t* group_of_column;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const float* const scales = static_cast<const float*>(op.scales.data) + row * op.scales.stride;
    const std::uint8_t* const zeros =
        static_cast<const std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
    const auto codes = *reinterpret_cast<const Bytes<kWidth>*>(
        static_cast<const std::uint8_t*>(op.codes.data) + row * op.codes.stride + col);
    int group =
        group_of_column == nullptr ? static_cast<int>(col) / static_cast<int>(op.group_size) : 0;
    Floats<kWidth> w;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (group_of_column != nullptr) group = group_of_column[col + i];
      w.at[i] = value_of(codes.at[i], scales[group], zeros[group]);
    }
    store<T, kWidth>(w, op.w, row, col);
  }
};

// One block a row; `value` and `column_weights` may be empty.
__global__ void __launch_bounds__(kThreads) row_errors_kernel(RowErrors op) {
  double* const parts = shared_memory<double[kWarps]>();
  const std::int64_t row = blockIdx.x;
  double sum = 0.0;
  for (std::int64_t col = threadIdx.x; col < op.w.cols; col += kThreads) {
    double d = static_cast<double>(load<float, 1>(op.w, row, col).at[0]);
    if (op.value.data != nullptr)
      d -= static_cast<double>(load<float, 1>(op.value, row, col).at[0]);
    const double weight =
        op.column_weights.data == nullptr
            ? 1.0
            : static_cast<double>(load<float, 1>(op.column_weights, 0, col).at[0]);
    sum += 0.5 * d * d * weight;
  }
  sum = block_reduce<kThreads>(sum, parts, Plus());
  if (threadIdx.x == 0) {
    static_cast<float*>(op.sums.data)[row * op.sums.stride] = static_cast<float>(sum);
  }
}

}  // namespace

BadGroups::BadGroups(CudaDevice& device)
    : device_(device), least_(device.pool().allocate(sizeof(Index))) {
  roundhouse::check(cudaMemsetAsync(least_.get(), 0xff, sizeof(Index), device.stream()),
                    "cudaMemsetAsync");
}

void BadGroups::check(const ConstMatrix& w, std::int64_t group_size, std::int64_t groups, Grid grid,
                      int bits) {
  constexpr Index kNone = ~Index{0};
  const Index index = device_.download<Index>(least_.get());
  if (index == kNone) return;
  const std::int64_t row = static_cast<std::int64_t>(index) / groups;
  const std::int64_t first = static_cast<std::int64_t>(index) % groups * group_size;
  const std::int64_t end = std::min(first + group_size, w.cols);
  const ConstMatrix group = w.row_range(row, row + 1).col_range(first, end);
  std::vector<std::byte> stored(static_cast<std::size_t>(group.cols) * size_of(w.type));
  device_.staging().download(group.data, stored);
  std::vector<float> values(static_cast<std::size_t>(group.cols));
  convert(w.type, stored.data(), DType::kF32, values.data(), values.size());
  float lo = values[0];
  float hi = values[0];
  for (const float value : values) {
    lo = value < lo || value != value ? value : lo;  // NaN stays
    hi = value > hi || value != value ? value : hi;
  }
  try {
    (void)make_grid_point(grid, bits, lo, hi);
  } catch (const NumericalError& e) {
    throw NumericalError("row " + std::to_string(row) + ", columns from " + std::to_string(first) +
                         ": " + e.what());
  }
  require(false, "the GPU finds no grid for a group where the CPU does");
}

void CudaBackend::run(const FindGrid& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  check_columns(op.w.cols);
  BadGroups bad(*device_);
  launch(teams_are_warps(op.w, op.group_size) ? find_grid_kernel<kWarp>
                                              : find_grid_kernel<kGroupThreads>,
         launch_of_groups(op.w, op.group_size, groups, device_->stream()), op, groups, bad.least());
  bad.check(op.w, op.group_size, groups, op.grid, op.bits);
}

void CudaBackend::run(const RoundToGrid& op) {
  const std::int64_t groups = groups_of(op.w.cols, op.group_size);
  RoundToGrid with_int_group = op;
  with_int_group.group_size = std::min(op.group_size, std::max<std::int64_t>(op.w.cols, 1));
  check_columns(op.w.cols);
  const bool packed =
      (groups <= 1 || op.group_size % kPackWidth == 0) && can_pack(op.w) && can_pack(op.codes);
  with_width(packed, [&](auto width) {
    for_each_element(op.w.rows, op.w.cols, width, device_->stream(),
                     Round<width()>{with_int_group});
  });
}

void CudaBackend::run(const Dequantize& op) {
  const std::int64_t rows = op.codes.rows;
  const std::int64_t cols = op.codes.cols;
  const bool gathered = op.gathered();
  const std::int64_t groups = gathered ? op.scales.cols : groups_of(cols, op.group_size);
  if (gathered) {
    std::vector<std::int32_t> group_of_column(static_cast<std::size_t>(cols));
    download(op.group_of_column.data, std::as_writable_bytes(std::span(group_of_column)));
    require(
        std::ranges::all_of(group_of_column, [&](std::int32_t g) { return 0 <= g && g < groups; }),
        "dequantize: a column names a group that is not there");
  }
  Dequantize with_int_group = op;
  with_int_group.group_size =
      gathered ? 1 : std::min(op.group_size, std::max<std::int64_t>(cols, 1));
  check_columns(cols);
  const bool packed = (gathered || groups <= 1 || op.group_size % kPackWidth == 0) &&
                      can_pack(op.codes) && can_pack(op.w);
  const auto* const group_of_column =
      gathered ? static_cast<const std::int32_t*>(op.group_of_column.data) : nullptr;
  with_float_type(op.w.type, [&](auto type) {
    with_width(packed, [&](auto width) {
      for_each_element(
          rows, cols, width, device_->stream(),
          ToValues<typename decltype(type)::type, width()>{with_int_group, group_of_column});
    });
  });
}

void CudaBackend::run(const RowErrors& op) {
  launch(row_errors_kernel,
         {.grid = blocks_for(op.w.rows),
          .threads = kThreads,
          .shared_bytes = sizeof(double[kWarps]),
          .stream = device_->stream()},
         op);
}

}  // namespace roundhouse
