// k-means of rows: a block takes a row at a time. Compiled without fused multiply-add (see CMakeLists.txt): tables and codes
// have to be the CPU's (kernels/cpu/cluster_rows.cpp).
#include <algorithm>
#include <vector>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/row_clusters.h"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
static_assert(kThreads == kMomentSegments && kThreads == kErrorLanes && kClusterStarts <= kWarps);
// Blocks, each with a workspace of its own: two for each multiprocessor of the largest GPUs.
constexpr std::int64_t kBlocks = 288;
constexpr int kSortTile = 4096;  // keys that are sorted in shared memory at a time

using Key = unsigned long long;  // of a weight, and below it its column: no two are equal
constexpr Key kLastKey = ~Key{0};

// Workspace of a block, in device memory.
struct Workspace {
  Key* keys;      // [padded]
  float* w;       // [n]
  Moments* sums;  // [n + 1]
  double* costs;  // [2 (n + 1)], and
  int* splits;    // [clusters (n + 1)]: for dynamic programming
};

struct Shared {
  union {
    Key keys[kSortTile];
    Moments segments[kThreads];
  };
  double parts[kWarps];
  float flags[kWarps];
  Clusters clusters[kClusterStarts];
  Seed seeds[kClusterStarts][kMostTrials];
  double centres[kMostClusters];
  float table[kMostClusters];
  float borders[kMostClusters];
  int distinct;
};

struct Report {  // of a row
  ClusteredRow row;
  int bad;
};

struct Problem {
  ConstMatrix w;
  ConstMatrix sensitivity;
  int clusters;
  int steps;
  bool exact;
  Matrix tables;
  Matrix codes;
  const double* draws;
  Report* reports;
  unsigned char* workspaces;
  std::int64_t workspace_bytes;
  int padded;
};

std::int64_t aligned(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

std::int64_t workspace_bytes(std::int64_t n, std::int64_t padded, std::int64_t clusters,
                             bool exact) {
  return aligned(padded * static_cast<std::int64_t>(sizeof(Key))) +
         aligned(n * static_cast<std::int64_t>(sizeof(float))) +
         aligned((n + 1) * static_cast<std::int64_t>(sizeof(Moments))) +
         (exact ? aligned(2 * (n + 1) * static_cast<std::int64_t>(sizeof(double))) +
                      aligned(clusters * (n + 1) * static_cast<std::int64_t>(sizeof(int)))
                : 0);
}

__device__ Workspace workspace_of_block(const Problem& p) {
  const std::int64_t n = p.w.cols;
  unsigned char* at = p.workspaces + static_cast<std::int64_t>(blockIdx.x) * p.workspace_bytes;
  const auto take = [&](std::int64_t bytes) {
    unsigned char* const piece = at;
    at += (bytes + 255) / 256 * 256;
    return piece;
  };
  Workspace space = {};
  space.keys = reinterpret_cast<Key*>(take(p.padded * static_cast<std::int64_t>(sizeof(Key))));
  space.w = reinterpret_cast<float*>(take(n * static_cast<std::int64_t>(sizeof(float))));
  space.sums =
      reinterpret_cast<Moments*>(take((n + 1) * static_cast<std::int64_t>(sizeof(Moments))));
  if (p.exact) {
    space.costs =
        reinterpret_cast<double*>(take(2 * (n + 1) * static_cast<std::int64_t>(sizeof(double))));
    space.splits = reinterpret_cast<int*>(take(0));
  }
  return space;
}

// One pass of a bitonic sort over keys[0, count), which begin at place `first` of the whole.
__device__ void compare_exchange(Key* keys, int count, int first, int size, int stride) {
  for (int pair = static_cast<int>(threadIdx.x); pair < count / 2; pair += kThreads) {
    const int i = 2 * stride * (pair / stride) + pair % stride, j = i + stride;
    const bool rising = ((first + i) & size) == 0;
    const Key a = keys[i], b = keys[j];
    if ((a > b) == rising) {
      keys[i] = b;
      keys[j] = a;
    }
  }
}

// `padded`, a power of two, is the number of keys.
__device__ void sort(Key* keys, int padded, Key* tile) {
  const int tile_keys = padded < kSortTile ? padded : kSortTile;
  for (int size = tile_keys; size <= padded; size *= 2) {
    for (int stride = size / 2; stride >= tile_keys; stride /= 2) {
      compare_exchange(keys, padded, 0, size, stride);
      __syncthreads();
    }
    for (int first = 0; first < padded; first += tile_keys) {
      for (int i = static_cast<int>(threadIdx.x); i < tile_keys; i += kThreads)
        tile[i] = keys[first + i];
      __syncthreads();
      for (int inner = size == tile_keys ? 2 : size; inner <= size; inner *= 2) {
        for (int stride = (inner < tile_keys ? inner : tile_keys) / 2; stride > 0; stride /= 2) {
          compare_exchange(tile, tile_keys, first, inner, stride);
          __syncthreads();
        }
      }
      for (int i = static_cast<int>(threadIdx.x); i < tile_keys; i += kThreads)
        keys[first + i] = tile[i];
      __syncthreads();
    }
  }
}

__device__ void sum_moments(const Problem& p, const Workspace& space, const float* sensitivity,
                            bool unit_weights, Shared& shared) {
  const int n = static_cast<int>(p.w.cols), thread = static_cast<int>(threadIdx.x);
  const int segment = (n + kMomentSegments - 1) / kMomentSegments;
  const int first = thread * segment < n ? thread * segment : n;
  const int end = first + segment < n ? first + segment : n;
  Moments sum{0.0, 0.0, 0.0};
  for (int i = first; i < end; ++i) {
    const Key key = space.keys[i];
    const float value = value_of_key(static_cast<std::uint32_t>(key >> 32));
    space.w[i] = value;
    sum =
        sum + moments_of(value, unit_weights ? 1.0f : sensitivity[static_cast<std::uint32_t>(key)]);
    space.sums[i + 1] = sum;
  }
  shared.segments[thread] = sum;
  __syncthreads();
  if (thread == 0) {
    Moments before{0.0, 0.0, 0.0};
    space.sums[0] = before;
    for (Moments& of_segment : shared.segments) {
      const Moments next = before + of_segment;
      of_segment = before;
      before = next;
    }
  }
  __syncthreads();
  for (int i = first; i < end; ++i) space.sums[i + 1] = shared.segments[thread] + space.sums[i + 1];
  __syncthreads();
}

// A warp makes one start.
__device__ void make_start(const SortedRow& row, const Problem& p, int start, Clusters& c,
                           Seed* seeds) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int trials = trials_of(p.clusters);
  const double* draws = p.draws + start * draws_of_start(p.clusters);
  if (lane == 0) begin_clusters(row, draws[0], c);
  ++draws;
  __syncwarp();
  for (int count = 1; count < p.clusters; ++count, draws += trials) {
    if (lane < trials) seeds[lane] = draw_seed(row, c, draws[lane]);
    __syncwarp();
    if (lane == 0) {
      Seed best = seeds[0];
      for (int trial = 1; trial < trials; ++trial) {
        if (seeds[trial].gain > best.gain) best = seeds[trial];
      }
      add_seed(row, best.value, c);
    }
    __syncwarp();
  }
  float changed = 1.0f;
  for (int step = 0; step < p.steps && changed != 0.0f; ++step) {
    if (lane < p.clusters)
      c.centre[lane] = row.mean(c.border[lane], c.border[lane + 1], c.centre[lane]);
    __syncwarp();
    changed = 0.0f;
    if (0 < lane && lane < p.clusters) {
      const int border = row.after(0.5 * (c.centre[lane - 1] + c.centre[lane]));
      if (border != c.border[lane]) changed = 1.0f;
      c.border[lane] = border;
    }
    changed = warp_reduce(changed, Larger());
    __syncwarp();
  }
  if (lane < p.clusters)
    c.cost[lane] = row.cost_about(c.border[lane], c.border[lane + 1], c.centre[lane]);
}

// By a warp.
__device__ Split best_split(const SortedRow& row, const double* costs_before, SplitRange range,
                            int end) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Split best{INFINITY, row.n + 1};
  for (int at = range.first + lane; at <= range.last; at += kWarp) {
    const Split split = split_at(row, costs_before, at, end);
    if (is_better(split, best)) best = split;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const Split other{__shfl_xor_sync(kAllLanes, best.cost, distance),
                      __shfl_xor_sync(kAllLanes, best.at, distance)};
    if (is_better(other, best)) best = other;
  }
  return best;
}

__device__ void find_optimum(const SortedRow& row, const Problem& p, const Workspace& space,
                             double* centres) {
  const int n = row.n, thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t width = std::int64_t{n} + 1;
  double* costs = space.costs;
  double* costs_before = space.costs + width;
  for (int i = thread; i <= n; i += kThreads) costs[i] = row.least_cost(0, i);
  __syncthreads();
  for (int layer = 1; layer < p.clusters - 1; ++layer) {
    double* const swapped = costs;
    costs = costs_before;
    costs_before = swapped;
    int* const splits = space.splits + width * layer;
    if (thread == 0) {
      costs[0] = 0.0;
      splits[0] = 0;
    }
    for (int step = highest_power_of_two(n); step > 0; step /= 2) {
      for (int i = step + 2 * step * warp; i <= n; i += 2 * step * kWarps) {
        const Split best = best_split(row, costs_before, split_range(splits, i, step, n), i);
        if (lane == 0) {
          costs[i] = best.cost;
          splits[i] = best.at;
        }
      }
      __syncthreads();
    }
  }
  if (warp == 0) {
    int end = n;
    for (int layer = p.clusters - 1; layer >= 0; --layer) {
      int begin = 0;
      if (layer == p.clusters - 1) {
        begin = best_split(row, costs, {0, n}, n).at;
      } else if (layer > 0) {
        begin = space.splits[width * layer + end];
      }
      if (lane == 0) {
        centres[layer] =
            row.mean(begin, end, static_cast<double>(row.w[begin < n ? begin : n - 1]));
      }
      end = begin;
    }
  }
}

__device__ void find_centres(const SortedRow& row, const Problem& p, const Workspace& space,
                             Shared& shared) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp;
  if (thread == 0) shared.distinct = distinct_values(row, p.clusters, shared.centres);
  __syncthreads();
  if (shared.distinct > 0) {
    if (thread == 0) {
      for (int i = shared.distinct; i < p.clusters; ++i)
        shared.centres[i] = shared.centres[shared.distinct - 1];
    }
  } else if (p.exact) {
    find_optimum(row, p, space, shared.centres);
  } else {
    if (warp < kClusterStarts) make_start(row, p, warp, shared.clusters[warp], shared.seeds[warp]);
    __syncthreads();
    if (thread == 0) {
      double least = 0.0;
      for (int start = 0; start < kClusterStarts; ++start) {
        const Clusters& c = shared.clusters[start];
        if (start > 0 && !(c.total() < least)) continue;
        least = c.total();
        for (int i = 0; i < p.clusters; ++i) shared.centres[i] = c.centre[i];
      }
    }
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads, 2) cluster_rows_kernel(Problem p) {
  Shared& shared = shared_memory<Shared>();
  const int n = static_cast<int>(p.w.cols), thread = static_cast<int>(threadIdx.x);
  const Workspace space = workspace_of_block(p);
  for (std::int64_t index = blockIdx.x; index < p.w.rows; index += gridDim.x) {
    const float* const w = static_cast<const float*>(p.w.data) + index * p.w.stride;
    const float* const sensitivity =
        static_cast<const float*>(p.sensitivity.data) + index * p.sensitivity.stride;
    float bad = 0.0f, most = 0.0f;
    for (int i = thread; i < p.padded; i += kThreads) {
      space.keys[i] = i < n ? Key{key_of(w[i])} << 32 | static_cast<Key>(i) : kLastKey;
      if (i >= n) continue;
      if (!is_weight(w[i]) || !is_sensitivity(sensitivity[i])) bad = 1.0f;
      most = Larger()(sensitivity[i], most);
    }
    bad = block_reduce<kThreads>(bad, shared.flags, Larger());
    most = block_reduce<kThreads>(most, shared.flags, Larger());
    const bool unit_weights = !(most > 0.0f);
    if (bad != 0.0f) {
      if (thread == 0) p.reports[index] = {{}, 1};
      continue;
    }
    __syncthreads();
    sort(space.keys, p.padded, shared.keys);
    sum_moments(p, space, sensitivity, unit_weights, shared);
    find_centres({space.w, space.sums, n}, p, space, shared);
    float* const table = static_cast<float*>(p.tables.data) + index * p.tables.stride;
    if (thread < p.clusters) {
      shared.table[thread] = table_value(shared.centres[thread]);
      table[thread] = shared.table[thread];
    }
    __syncthreads();
    if (0 < thread && thread < p.clusters) {
      shared.borders[thread] = border_between(shared.table[thread - 1], shared.table[thread]);
    }
    __syncthreads();
    double error = 0.0;
    std::uint8_t* const codes = static_cast<std::uint8_t*>(p.codes.data) + index * p.codes.stride;
    for (int i = thread; i < n; i += kThreads) {
      int code = 0;
      for (int border = 1; border < p.clusters; ++border)
        code += w[i] > shared.borders[border] ? 1 : 0;
      codes[i] = static_cast<std::uint8_t>(code);
      const double d = static_cast<double>(w[i]) - static_cast<double>(shared.table[code]);
      error += (unit_weights ? 1.0 : static_cast<double>(sensitivity[i])) * d * d;
    }
    error = block_reduce<kThreads>(error, shared.parts, Plus());
    if (thread == 0) {
      p.reports[index] = {{error, unit_weights ? 1 : 0, shared.distinct > 0 ? 1 : 0}, 0};
    }
    __syncthreads();  // the next row overwrites what is shared
  }
}

}  // namespace

void CudaBackend::run(const ClusterRows& op) {
  const std::int64_t rows = op.w.rows, n = op.w.cols;
  check_columns(n);
  const int clusters = 1 << op.bits;
  int padded = 2;
  while (padded < n) padded *= 2;
  const std::int64_t bytes = workspace_bytes(n, padded, clusters, op.exact);
  const std::int64_t blocks = std::min(rows, kBlocks);
  const std::vector<double> draws = cluster_draws(op.seed, clusters);
  const Buffer device_draws = allocate(draws.size() * sizeof(double));
  upload(std::as_bytes(std::span(draws)), device_draws.get());
  const Buffer workspaces = allocate(static_cast<std::size_t>(blocks * bytes));
  const Buffer device_reports = allocate(static_cast<std::size_t>(rows) * sizeof(Report));
  launch(cluster_rows_kernel,
         {.grid = blocks_for(blocks),
          .threads = kThreads,
          .shared_bytes = sizeof(Shared),
          .stream = device_->stream()},
         Problem{.w = op.w,
                 .sensitivity = op.sensitivity,
                 .clusters = clusters,
                 .steps = op.steps,
                 .exact = op.exact,
                 .tables = op.tables,
                 .codes = op.codes,
                 .draws = reinterpret_cast<const double*>(device_draws.get()),
                 .reports = reinterpret_cast<Report*>(device_reports.get()),
                 .workspaces = reinterpret_cast<unsigned char*>(workspaces.get()),
                 .workspace_bytes = bytes,
                 .padded = padded});
  std::vector<Report> reports(static_cast<std::size_t>(rows));
  download(device_reports.get(), std::as_writable_bytes(std::span(reports)));
  for (std::size_t row = 0; row < reports.size(); ++row) {
    op.rows[row] = reports[row].row;
    if (reports[row].bad == 0) continue;
    const auto index = static_cast<std::int64_t>(row);
    std::vector<float> w(static_cast<std::size_t>(n)), sensitivity(w.size());
    download(op.w.row_range(index, index + 1).data, std::as_writable_bytes(std::span(w)));
    download(op.sensitivity.row_range(index, index + 1).data,
             std::as_writable_bytes(std::span(sensitivity)));
    refuse_row(index, w.data(), sensitivity.data(), n);
  }
}

}  // namespace roundhouse
