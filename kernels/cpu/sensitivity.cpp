#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/float_key.h"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

constexpr int kSumLanes = 16;  // of double; a row's sum is that of these, in order

struct Lanes {
  double first_order[kSumLanes] = {};
  double absolute[kSumLanes] = {};
  double squares[kSumLanes] = {};
};

// Of at most kSumLanes neighbours in one group.
[[gnu::always_inline]] inline void add_products(const float* gradient, const float* w, int n,
                                                float scale, int zero, int qmax, float kept_above,
                                                Lanes& sums) {
  for (int i = 0; i < n; ++i) {
    const float value = value_of(code_of(w[i], scale, zero, qmax), scale, zero);
    const double moved =
        fabsf(w[i]) > kept_above ? 0.0 : static_cast<double>(w[i]) - static_cast<double>(value);
    const double product = static_cast<double>(gradient[i]) * moved;
    sums.first_order[i] += product;
    sums.absolute[i] += std::abs(product);
    sums.squares[i] += product * product;
  }
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void add_products_of_group(
    const float* gradient, const float* w, std::int64_t n, float scale, int zero, int qmax,
    float kept_above, Lanes& sums) {
  std::int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    add_products(gradient + i, w + i, kSumLanes, scale, zero, qmax, kept_above, sums);
  }
  add_products(gradient + i, w + i, static_cast<int>(n - i), scale, zero, qmax, kept_above, sums);
}

double sum_of(const double (&lanes)[kSumLanes]) {
  double sum = 0.0;
  for (const double lane : lanes) sum += lane;
  return sum;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void remove_row(
    float* w, float* sensitivity, std::int64_t n, float sensitive_above, float large_from,
    std::uint8_t* removed) {
  for (std::int64_t i = 0; i < n; ++i) {
    const bool out = (fabsf(w[i]) >= large_from) | (sensitivity[i] > sensitive_above);
    w[i] = out ? 0.0f : w[i];
    sensitivity[i] = out ? 0.0f : sensitivity[i];
    removed[i] = out ? 1 : 0;
  }
}

// Calls count(row, counts) for each row, with counts of the thread's own, and adds those up.
template <class Count>
void count_rows(ThreadPool& threads, std::int64_t rows, std::span<std::int64_t> counts,
                const Count& count) {
  std::vector<std::vector<std::int64_t>> of_thread(static_cast<std::size_t>(threads.size()));
  threads.run(rows, [&](std::int64_t row, int thread) {
    std::vector<std::int64_t>& mine = of_thread[thread];
    if (mine.empty()) mine.resize(counts.size());
    count(row, mine);
  });
  for (const std::vector<std::int64_t>& mine : of_thread) {
    for (std::size_t i = 0; i < mine.size(); ++i) counts[i] += mine[i];
  }
}

}  // namespace

void CpuBackend::run(const RoundingProducts& op) {
  const std::size_t widths = op.widths.size();
  const float* const all_gradients = op.gradient.f32();
  const float* const all_w = op.w.f32();
  std::vector<RoundingSums> of_row(static_cast<std::size_t>(op.w.rows) * widths);
  for_each_range(
      threads_, op.w.rows, rows_per_piece(op.w.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          for (std::size_t i = 0; i < widths; ++i) {
            const RoundingWidth& width = op.widths[i];
            const float* const scales = width.scales.f32() + row * width.scales.stride;
            const std::uint8_t* const zeros =
                static_cast<const std::uint8_t*>(width.zeros.data) + row * width.zeros.stride;
            Lanes lanes;
            for (std::int64_t first = 0, group = 0; first < op.w.cols;
                 first += op.group_size, ++group) {
              add_products_of_group(all_gradients + row * op.gradient.stride + first,
                                    all_w + row * op.w.stride + first,
                                    std::min(op.group_size, op.w.cols - first), scales[group],
                                    zeros[group], (1 << width.bits) - 1, width.kept_above, lanes);
            }
            of_row[static_cast<std::size_t>(row) * widths + i] = {
                sum_of(lanes.first_order), sum_of(lanes.absolute), sum_of(lanes.squares)};
          }
        }
      });
  for (std::size_t at = 0; at < of_row.size(); ++at) {
    RoundingSums& sum = op.sums[at % widths];
    sum.first_order += of_row[at].first_order;
    sum.absolute += of_row[at].absolute;
    sum.squares += of_row[at].squares;
  }
}

void CpuBackend::run(const CountKeys& op) {
  const float* const all_x = op.x.f32();
  const int shift = 32 - op.prefix_bits - op.bits;
  const std::uint64_t first = std::uint64_t{op.prefix} << op.bits;
  count_rows(threads_, op.x.rows, op.counts, [&](std::int64_t row, std::span<std::int64_t> counts) {
    const float* const x = all_x + row * op.x.stride;
    for (std::int64_t i = 0; i < op.x.cols; ++i) {
      const std::uint64_t value = (key_of(op.magnitude ? fabsf(x[i]) : x[i]) >> shift) - first;
      if (value < counts.size()) ++counts[value];
    }
  });
}

void CpuBackend::run(const CountLarge& op) {
  const float* const all_w = op.w.f32();
  const bool sensitive = op.sensitivity.data != nullptr;
  count_rows(threads_, op.w.rows, op.counts, [&](std::int64_t row, std::span<std::int64_t> counts) {
    const float* const w = all_w + row * op.w.stride;
    for (std::int64_t i = 0; i < op.w.cols; ++i) {
      const float magnitude = fabsf(w[i]);
      if (!(magnitude >= op.thresholds[0])) continue;
      if (sensitive && op.sensitivity.f32()[row * op.sensitivity.stride + i] > op.sensitive_above)
        continue;
      for (std::size_t t = 0; t < counts.size() && magnitude >= op.thresholds[t]; ++t) ++counts[t];
    }
  });
}

void CpuBackend::run(const RemoveOutliers& op) {
  float* const w = op.w.f32();
  float* const sensitivity = op.sensitivity.f32();
  for_each_range(
      threads_, op.w.rows, rows_per_piece(op.w.cols), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          remove_row(w + row * op.w.stride, sensitivity + row * op.sensitivity.stride, op.w.cols,
                     op.sensitive_above, op.large_from,
                     static_cast<std::uint8_t*>(op.removed.data) + row * op.removed.stride);
        }
      });
}

}  // namespace roundhouse
