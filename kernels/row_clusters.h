// The arithmetic of k-means on a sorted row, for host and device code alike: see ClusterRows in kernels/lookup_table.h.
// A GPU does with the lanes of a warp what the CPU does one after another, by the same operations in the same order.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/float_key.h"
#include "kernels/grid_point.h"
#include "kernels/lookup_table.h"

namespace roundhouse {

inline constexpr int kMostClusters = 16;
inline constexpr int kMostTrials = 4;  // 2 + ln 16
inline constexpr int kMomentSegments =
    256;                                 // prefix sums: this many parts of a row, each by itself
inline constexpr int kErrorLanes = 256;  // the error of a row: so many sums of every 256th column
inline constexpr float kTooLarge = 65520.0f;  // float16 has no such value

ROUNDHOUSE_HD inline bool is_weight(float w) { return fabsf(w) < kTooLarge; }  // false for NaN
ROUNDHOUSE_HD inline bool is_sensitivity(float s) { return s >= 0.0f && s < INFINITY; }

// Sums over columns of s, s w and s w².
struct Moments {
  double s, sw, sww;
};
ROUNDHOUSE_HD inline Moments moments_of(float w, float sensitivity) {
  const double s = static_cast<double>(sensitivity), x = static_cast<double>(w);
  return {s, s * x, s * x * x};
}
ROUNDHOUSE_HD inline Moments operator+(const Moments& a, const Moments& b) {
  return {a.s + b.s, a.sw + b.sw, a.sww + b.sww};
}
ROUNDHOUSE_HD inline Moments operator-(const Moments& a, const Moments& b) {
  return {a.s - b.s, a.sw - b.sw, a.sww - b.sww};
}

struct SortedRow {
  const float* w;       // ascending
  const Moments* sums;  // n + 1: of the first 0, 1, ... columns
  int n;                // at least 1

  // The first column in [begin, n) whose weight is above the border; n if there is none.
  ROUNDHOUSE_HD int after(double border) const {
    int first = 0;
    for (int length = n; length > 0;) {
      const int half = length / 2;
      const bool right = static_cast<double>(w[first + half]) <= border;
      first = right ? first + half + 1 : first;
      length = right ? length - half - 1 : half;
    }
    return first;
  }
  // sum s (w - centre)²
  ROUNDHOUSE_HD double cost_about(int begin, int end, double centre) const {
    const Moments m = sums[end] - sums[begin];
    const double cost = m.sww - 2.0 * centre * m.sw + centre * centre * m.s;
    return cost > 0.0 ? cost : 0.0;  // rounding may leave less
  }
  // The same about their mean.
  ROUNDHOUSE_HD double least_cost(int begin, int end) const {
    const Moments m = sums[end] - sums[begin];
    const double cost = m.s > 0.0 ? m.sww - m.sw * m.sw / m.s : 0.0;
    return cost > 0.0 ? cost : 0.0;
  }
  // `otherwise` where nothing has a weight. Differences of prefix sums may be off, so not beyond the columns' own.
  ROUNDHOUSE_HD double mean(int begin, int end, double otherwise) const {
    const Moments m = sums[end] - sums[begin];
    if (end <= begin || !(m.s > 0.0)) return otherwise;
    const double mean = m.sw / m.s;
    const double least = static_cast<double>(w[begin]), most = static_cast<double>(w[end - 1]);
    return mean < least ? least : mean > most ? most : mean;
  }
};

// Neighbouring intervals of a sorted row, each with its centre: interval i is [border[i], border[i + 1]).
struct Clusters {
  int count;
  double centre[kMostClusters];  // ascending
  int border[kMostClusters + 1];
  double cost[kMostClusters];

  ROUNDHOUSE_HD double total() const {
    double sum = 0.0;
    for (int i = 0; i < count; ++i) sum += cost[i];
    return sum;
  }
};

ROUNDHOUSE_HD inline int trials_of(int clusters) { return clusters < 3 ? 2 : clusters < 8 ? 3 : 4; }
ROUNDHOUSE_HD inline int draws_of_start(int clusters) {
  return 1 + (clusters - 1) * trials_of(clusters);
}

// The first seed: each column with a probability in proportion to its sensitivity.
ROUNDHOUSE_HD inline void begin_clusters(const SortedRow& row, double draw, Clusters& c) {
  const double target = draw * row.sums[row.n].s;
  int first = 0;
  for (int length = row.n; length > 0;) {
    const int half = length / 2;
    const bool right = row.sums[first + half + 1].s <= target;
    first = right ? first + half + 1 : first;
    length = right ? length - half - 1 : half;
  }
  c.count = 1;
  c.centre[0] = static_cast<double>(row.w[first < row.n ? first : row.n - 1]);
  c.border[0] = 0;
  c.border[1] = row.n;
  c.cost[0] = row.cost_about(0, row.n, c.centre[0]);
}

struct Seed {
  double value;
  double gain;  // what it takes from the total cost
};

// A column with a probability in proportion to its share of the cost, and what it would be worth as a centre.
ROUNDHOUSE_HD inline Seed draw_seed(const SortedRow& row, const Clusters& c, double draw) {
  double target = draw * c.total();
  int i = 0;
  while (i < c.count - 1 && target >= c.cost[i]) target -= c.cost[i++];
  int column = c.border[i];
  for (int length = c.border[i + 1] - column; length > 0;) {
    const int half = length / 2;
    const bool right = row.cost_about(c.border[i], column + half + 1, c.centre[i]) <= target;
    column = right ? column + half + 1 : column;
    length = right ? length - half - 1 : half;
  }
  if (column >= c.border[i + 1]) column = c.border[i + 1] - 1;
  const double value = static_cast<double>(row.w[column < 0 ? 0 : column]);
  const int right = value > c.centre[i] ? i + 1 : i;  // the neighbours: right - 1 and right
  const int begin = right > 0 ? row.after(0.5 * (c.centre[right - 1] + value)) : 0;
  const int end = right < c.count ? row.after(0.5 * (value + c.centre[right])) : row.n;
  const int seam = c.border[right];
  double before = 0.0;
  if (right > 0 && begin < seam) before += row.cost_about(begin, seam, c.centre[right - 1]);
  if (right < c.count && seam < end) before += row.cost_about(seam, end, c.centre[right]);
  return {value, before - row.cost_about(begin, end, value)};
}

ROUNDHOUSE_HD inline void add_seed(const SortedRow& row, double value, Clusters& c) {
  int at = c.count;
  for (; at > 0 && c.centre[at - 1] > value; --at) {
    c.centre[at] = c.centre[at - 1];
    c.border[at + 1] = c.border[at];
    c.cost[at] = c.cost[at - 1];
  }
  c.centre[at] = value;
  ++c.count;
  c.border[c.count] = row.n;
  if (at > 0) c.border[at] = row.after(0.5 * (c.centre[at - 1] + value));
  if (at + 1 < c.count) c.border[at + 1] = row.after(0.5 * (value + c.centre[at + 1]));
  for (int i = at > 0 ? at - 1 : 0; i <= at + 1 && i < c.count; ++i) {
    c.cost[i] = row.cost_about(c.border[i], c.border[i + 1], c.centre[i]);
  }
}

// If the row has at most `most` distinct weights, their number, and `values` holds them; else 0.
ROUNDHOUSE_HD inline int distinct_values(const SortedRow& row, int most, double* values) {
  int count = 0;
  for (int column = 0; column < row.n; ++count) {
    if (count == most) return 0;
    values[count] = static_cast<double>(row.w[column]);
    column = row.after(values[count]);
  }
  return count;
}

// Dynamic programming: of the first i columns, in j intervals, the least cost is the least over t of that of the first t in
// j - 1 and of [t, i) in one. The best t does not fall as i rises, so it is looked for between those of columns on both sides
// that are known: columns at odd multiples of n's highest power of two first, then of its half, and so on.
struct Split {
  double cost;
  int at;
};
ROUNDHOUSE_HD inline bool is_better(const Split& a, const Split& b) {
  return a.cost < b.cost || (a.cost == b.cost && a.at < b.at);
}
ROUNDHOUSE_HD inline Split split_at(const SortedRow& row, const double* costs_before, int at,
                                    int end) {
  return {costs_before[at] + row.least_cost(at, end), at};
}
struct SplitRange {
  int first, last;
};
ROUNDHOUSE_HD inline SplitRange split_range(const int* best, int i, int step, int n) {
  const int last = i + step <= n && best[i + step] < i ? best[i + step] : i;
  return {i - step > 0 ? best[i - step] : 0, last};
}
ROUNDHOUSE_HD inline int highest_power_of_two(int n) {
  int power = 1;
  while (power <= n / 2) power *= 2;
  return power;
}

ROUNDHOUSE_HD inline float table_value(double centre) {
  return nearest_half(static_cast<float>(centre)) + 0.0f;  // no -0
}
// Weights above this are nearer to b than to a. Two float16s add up exactly in double.
ROUNDHOUSE_HD inline float border_between(float a, float b) {
  const double middle = 0.5 * (static_cast<double>(a) + static_cast<double>(b));
  const float border = static_cast<float>(middle);
  return static_cast<double>(border) > middle ? nextafterf(border, -INFINITY) : border;
}

// Of all starts, one after another.
std::vector<double> cluster_draws(std::uint64_t seed, int clusters);
// Throws Error that names the first column of the row that ClusterRows does not take. Precondition: there is one.
[[noreturn]] void refuse_row(std::int64_t row, const float* w, const float* sensitivity,
                             std::int64_t cols);

}  // namespace roundhouse
