// k-means of rows. Sorting, the largest part, is a radix sort of keys with their sensitivities: three passes of 11 bits, of
// which those are left out in which all keys agree (of BF16 weights, one).
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/row_clusters.h"

namespace roundhouse {
namespace {

constexpr int kDigitBits = 11;
constexpr int kDigits = 3;
constexpr std::size_t kDigitValues = std::size_t{1} << kDigitBits;

struct Item {
  std::uint32_t key;
  float sensitivity;
};

// What a thread needs for a row.
struct Workspace {
  std::vector<Item> items, sorted;
  std::vector<float> w;
  std::vector<Moments> sums;
  std::vector<double> costs, costs_before;  // of dynamic programming
  std::vector<int> splits;
};

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] bool is_good_row(
    const float* w, const float* sensitivity, std::int64_t n, bool& any_sensitivity) {
  int bad = 0, positive = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    bad |= !(fabsf(w[i]) < kTooLarge) | !(sensitivity[i] >= 0.0f) | !(sensitivity[i] < INFINITY);
    positive |= sensitivity[i] > 0.0f;
  }
  any_sensitivity = positive != 0;
  return bad == 0;
}

// Into space.w and space.sums.
SortedRow sort_row(const float* w, const float* sensitivity, int n, bool unit_weights,
                   Workspace& space) {
  const auto size = static_cast<std::size_t>(n);
  space.items.resize(size);
  space.sorted.resize(size);
  space.w.resize(size);
  space.sums.resize(size + 1);
  std::array<std::array<std::uint32_t, kDigitValues>, kDigits> counts{};
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t key = key_of(w[i]);
    space.items[i] = {key, unit_weights ? 1.0f : sensitivity[i]};
    for (std::size_t digit = 0; digit < kDigits; ++digit) {
      ++counts[digit][key >> (digit * kDigitBits) & (kDigitValues - 1)];
    }
  }
  for (std::size_t digit = 0; digit < kDigits; ++digit) {
    const std::size_t shift = digit * kDigitBits;
    if (counts[digit][space.items[0].key >> shift & (kDigitValues - 1)] == size) continue;
    std::uint32_t begin = 0;
    for (std::uint32_t& count : counts[digit]) begin += std::exchange(count, begin);
    for (const Item& item : space.items) {
      space.sorted[counts[digit][item.key >> shift & (kDigitValues - 1)]++] = item;
    }
    space.items.swap(space.sorted);
  }

  // Each segment is summed by itself and its sums are added to those of all before it: as a GPU's threads can.
  const int segment = (n + kMomentSegments - 1) / kMomentSegments;
  Moments before{0.0, 0.0, 0.0};
  space.sums[0] = before;
  for (int first = 0; first < n; first += segment) {
    Moments sum{0.0, 0.0, 0.0};
    for (int i = first; i < std::min(n, first + segment); ++i) {
      const Item& item = space.items[i];
      const float value = value_of_key(item.key);
      space.w[i] = value;
      sum = sum + moments_of(value, item.sensitivity);
      space.sums[static_cast<std::size_t>(i) + 1] = before + sum;
    }
    before = before + sum;
  }
  return {space.w.data(), space.sums.data(), n};
}

Clusters seeds(const SortedRow& row, int count, const double* draws) {
  Clusters c;
  begin_clusters(row, *draws++, c);
  while (c.count < count) {
    Seed best = draw_seed(row, c, *draws++);
    for (int trial = 1; trial < trials_of(count); ++trial) {
      const Seed seed = draw_seed(row, c, *draws++);
      if (seed.gain > best.gain) best = seed;
    }
    add_seed(row, best.value, c);
  }
  return c;
}

void lloyd(const SortedRow& row, int steps, Clusters& c) {
  bool changed = true;
  for (int step = 0; step < steps && changed; ++step) {
    for (int i = 0; i < c.count; ++i)
      c.centre[i] = row.mean(c.border[i], c.border[i + 1], c.centre[i]);
    changed = false;
    for (int i = 1; i < c.count; ++i) {
      const int border = row.after(0.5 * (c.centre[i - 1] + c.centre[i]));
      changed = changed || border != c.border[i];
      c.border[i] = border;
    }
  }
  for (int i = 0; i < c.count; ++i) {
    c.cost[i] = row.cost_about(c.border[i], c.border[i + 1], c.centre[i]);
  }
}

Split best_split(const SortedRow& row, const double* costs_before, SplitRange range, int end) {
  Split best = split_at(row, costs_before, range.first, end);
  for (int at = range.first + 1; at <= range.last; ++at) {
    const Split split = split_at(row, costs_before, at, end);
    if (is_better(split, best)) best = split;
  }
  return best;
}

void optimal_centres(const SortedRow& row, int count, Workspace& space, double* centres) {
  const int n = row.n;
  const std::size_t width = static_cast<std::size_t>(n) + 1;
  space.costs.resize(width);
  space.costs_before.resize(width);
  space.splits.assign(width * static_cast<std::size_t>(count), 0);
  for (int i = 0; i <= n; ++i) space.costs[i] = row.least_cost(0, i);
  for (int layer = 1; layer < count - 1; ++layer) {
    space.costs.swap(space.costs_before);
    space.costs[0] = 0.0;
    int* const splits = space.splits.data() + width * static_cast<std::size_t>(layer);
    for (int step = highest_power_of_two(n); step > 0; step /= 2) {
      for (int i = step; i <= n; i += 2 * step) {
        const Split best =
            best_split(row, space.costs_before.data(), split_range(splits, i, step, n), i);
        space.costs[i] = best.cost;
        splits[i] = best.at;
      }
    }
  }
  int end = n;
  for (int layer = count - 1; layer >= 0; --layer) {
    int begin = 0;
    if (layer == count - 1) {
      begin = best_split(row, space.costs.data(), {0, n}, n).at;
    } else if (layer > 0) {
      begin = space.splits[width * static_cast<std::size_t>(layer) + static_cast<std::size_t>(end)];
    }
    centres[layer] = row.mean(begin, end, static_cast<double>(row.w[std::min(begin, n - 1)]));
    end = begin;
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] double assign(
    const float* w, const float* sensitivity, std::int64_t n, const float* table, int count,
    std::uint8_t* codes) {
  float borders[kMostClusters];
  for (int i = 1; i < count; ++i) borders[i] = border_between(table[i - 1], table[i]);
  double lanes[kErrorLanes] = {};
  for (std::int64_t begin = 0; begin < n; begin += kErrorLanes) {
    const int size = static_cast<int>(n - begin < kErrorLanes ? n - begin : kErrorLanes);
    std::int32_t code[kErrorLanes] = {};
    for (int i = 1; i < count; ++i) {
      for (int lane = 0; lane < size; ++lane) code[lane] += w[begin + lane] > borders[i] ? 1 : 0;
    }
    for (int lane = 0; lane < size; ++lane) {
      const double d =
          static_cast<double>(w[begin + lane]) - static_cast<double>(table[code[lane]]);
      const double s =
          sensitivity == nullptr ? 1.0 : static_cast<double>(sensitivity[begin + lane]);
      lanes[lane] += s * d * d;
    }
    for (int lane = 0; lane < size; ++lane)
      codes[begin + lane] = static_cast<std::uint8_t>(code[lane]);
  }
  // As the warps of a GPU's block add.
  double sum = 0.0;
  for (int warp = 0; warp < kErrorLanes; warp += 32) {
    for (int distance = 16; distance > 0; distance /= 2) {
      for (int lane = 0; lane < distance; ++lane)
        lanes[warp + lane] += lanes[warp + lane + distance];
    }
    sum = warp == 0 ? lanes[0] : sum + lanes[warp];
  }
  return sum;
}

}  // namespace

void CpuBackend::run(const ClusterRows& op) {
  const int n = static_cast<int>(op.w.cols);
  const int count = 1 << op.bits;
  const std::vector<double> draws = cluster_draws(op.seed, count);
  std::vector<Workspace> spaces(static_cast<std::size_t>(threads_.size()));
  const float* const all_w = op.w.f32();
  const float* const all_sensitivities = op.sensitivity.f32();
  threads_.run(op.w.rows, [&](std::int64_t index, int thread) {
    Workspace& space = spaces[thread];
    const float* const w = all_w + index * op.w.stride;
    const float* const sensitivity = all_sensitivities + index * op.sensitivity.stride;
    bool any_sensitivity = false;
    if (!is_good_row(w, sensitivity, n, any_sensitivity)) refuse_row(index, w, sensitivity, n);
    const SortedRow row = sort_row(w, sensitivity, n, !any_sensitivity, space);
    double centres[kMostClusters];
    const int distinct = distinct_values(row, count, centres);
    if (distinct > 0) {
      std::fill(centres + distinct, centres + count, centres[distinct - 1]);
    } else if (op.exact) {
      optimal_centres(row, count, space, centres);
    } else {
      double least = 0.0;
      for (int start = 0; start < kClusterStarts; ++start) {
        Clusters c = seeds(row, count, draws.data() + start * draws_of_start(count));
        lloyd(row, op.steps, c);
        if (start > 0 && !(c.total() < least)) continue;
        least = c.total();
        std::copy(c.centre, c.centre + count, centres);
      }
    }
    float* const table = op.tables.f32() + index * op.tables.stride;
    for (int i = 0; i < count; ++i) table[i] = table_value(centres[i]);
    const double error =
        assign(w, any_sensitivity ? sensitivity : nullptr, n, table, count,
               static_cast<std::uint8_t*>(op.codes.data) + index * op.codes.stride);
    op.rows[index] = {error, any_sensitivity ? 0 : 1, distinct > 0 ? 1 : 0};
  });
}

}  // namespace roundhouse
