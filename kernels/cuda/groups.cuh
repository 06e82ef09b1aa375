// What the kernels on groups of weights share: each group has a team of threads, a warp where groups are short.
#pragma once

#include <algorithm>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/grid_point.h"

namespace roundhouse {

inline constexpr int kGroupThreads = 256;  // of a block
inline constexpr int kGroupWarps = kGroupThreads / kWarp;
// Groups of up to so many columns have a warp each, longer ones a block.
inline constexpr std::int64_t kWarpGroup = 1024;

// A team of kTeam threads, a warp or the block, and the group that it has.
template <int kTeam>
struct Team {
  int thread;
  std::int64_t index;  // of the group, row by row
  std::int64_t row;
  std::int64_t group;
  std::int64_t first;  // column
  int n;               // columns

  // The last block may have teams without a group, which are not `there`. Precondition: w has columns.
  template <class M>  // Matrix or ConstMatrix
  __device__ Team(const M& w, std::int64_t group_size, std::int64_t groups)
      : thread(static_cast<int>(threadIdx.x) % kTeam),
        index(static_cast<std::int64_t>(blockIdx.x) * (kGroupThreads / kTeam) +
              static_cast<int>(threadIdx.x) / kTeam),
        row(index / groups),
        group(index % groups),
        first(group * group_size),
        n(static_cast<int>(w.cols - first < group_size ? w.cols - first : group_size)),
        rows_(w.rows) {}
  __device__ bool there() const { return row < rows_; }

  template <class T, class Combine>
  __device__ T reduce(T value, Combine combine) const {
    if constexpr (kTeam == kWarp) return warp_reduce(value, combine);
    return block_reduce<kTeam>(value, shared_memory<T[kGroupWarps]>(), combine);
  }

 private:
  std::int64_t rows_;
};

struct FoundRange {
  float lo;
  float hi;
  bool finite;
};

// Of value(0) .. value(n - 1), n the columns of the team's group.
template <int kTeam, class Value>
__device__ FoundRange range_of_values(const Team<kTeam>& team, const Value& value) {
  float lo = value(0);
  float hi = lo;
  float bad = 0.0f;
  for (int i = team.thread; i < team.n; i += kTeam) {
    const float x = value(i);
    lo = Smaller()(x, lo);
    hi = Larger()(x, hi);
    bad = x - x == 0.0f ? bad : 1.0f;  // NaN or infinity
  }
  lo = team.reduce(lo, Smaller());
  hi = team.reduce(hi, Larger());
  return {lo, hi, team.reduce(bad, Larger()) == 0.0f};
}

template <class T, int kTeam>
__device__ FoundRange range_of(const Team<kTeam>& team, const ConstMatrix& w) {
  return range_of_values(team,
                         [&](int i) { return load<T, 1>(w, team.row, team.first + i).at[0]; });
}

// Which of a kernel's two forms, <kWarp> or <kGroupThreads>, to launch, and how.
inline bool teams_are_warps(const ConstMatrix& w, std::int64_t group_size) {
  return std::min(group_size, w.cols) <= kWarpGroup;
}
inline Launch launch_of_groups(const ConstMatrix& w, std::int64_t group_size, std::int64_t groups,
                               cudaStream_t stream) {
  return {.grid = blocks_for(w.rows * groups, teams_are_warps(w, group_size) ? kGroupWarps : 1),
          .threads = kGroupThreads,
          .shared_bytes = sizeof(double[kGroupWarps]),
          .stream = stream};
}

// Groups for which a kernel found no grid: it keeps the least index.
class BadGroups {
 public:
  using Index = unsigned long long;  // what atomicMin knows
  explicit BadGroups(CudaDevice& device);
  Index* least() { return reinterpret_cast<Index*>(least_.get()); }
  // Waits for the kernel. Throws Error with what make_grid_point() says of the group, and its row and columns.
  void check(const ConstMatrix& w, std::int64_t group_size, std::int64_t groups, Grid grid,
             int bits);

 private:
  CudaDevice& device_;
  Buffer least_;
};

}  // namespace roundhouse
