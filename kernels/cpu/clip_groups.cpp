// Per-group Gram matrices and the clipping that they judge. A piece is a few rows of one group: all candidates of all its rows
// go through one matrix product.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/group_range.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"
#include "kernels/cpu/weight_group.h"
#include "kernels/grid_point.h"
#include "kernels/operands.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kGramSlab = 512;  // rows of x that one product adds
constexpr std::int64_t kGramTile = 256;

// Bound j of the candidates for a group whose largest magnitude is `largest`.
float bound_of(float largest, int j, int divisions) {
  return largest * (1.0f - static_cast<float>(j) / static_cast<float>(divisions));
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void clamp(const float* w,
                                                                                 std::int64_t n,
                                                                                 float bound,
                                                                                 float* out) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float low = w[i] < -bound ? -bound : w[i];
    out[i] = low > bound ? bound : low;
  }
}

// delta = (Q(clipped) - w) / s.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void rounding_delta(
    const float* clipped, const float* w, const float* s, std::int64_t n, GridPoint point, int qmax,
    float* delta) {
  for (std::int64_t i = 0; i < n; ++i) {
    const int code = code_of(clipped[i], point.scale, point.zero, qmax);
    delta[i] = (value_of(code, point.scale, point.zero) - w[i]) / s[i];
  }
}

// Rows of one piece: about 300 rows of candidates for a group of 128, fewer for long groups.
std::int64_t rows_together(std::int64_t group_size) {
  return std::clamp<std::int64_t>(4096 / group_size, 4, 32);
}

}  // namespace

void CpuBackend::run(const GroupGrams& op) {
  const std::int64_t cols = op.x.cols;
  const std::int64_t groups = groups_of(cols, op.group_size);
  const std::int64_t tiles = (op.group_size + kGramTile - 1) / kGramTile;
  const float* const x = op.x.f32();
  float* const grams = op.grams.f32();
  for_each_piece(threads_, groups * tiles * tiles, [&](std::int64_t piece) {
    const std::int64_t first = piece / (tiles * tiles) * op.group_size;
    const std::int64_t n = std::min(op.group_size, cols - first);
    const std::int64_t i = piece / tiles % tiles * kGramTile, j = piece % tiles * kGramTile;
    if (i >= n || j >= n) return;
    for (std::int64_t begin = 0; begin < op.x.rows; begin += kGramSlab) {
      const float* const slab = x + begin * op.x.stride + first;
      sgemm({.m = std::min(kGramTile, n - i),
             .n = std::min(kGramTile, n - j),
             .k = std::min(kGramSlab, op.x.rows - begin),
             .a = slab + i,
             .a_stride = op.x.stride,
             .transpose_a = true,
             .b = slab + j,
             .b_stride = op.x.stride,
             .c = grams + (first + i) * op.grams.stride + j,
             .c_stride = op.grams.stride,
             .beta = 1.0f});
    }
  });
}

void CpuBackend::run(const ClipGroups& op) {
  const std::int64_t rows = op.w.rows, cols = op.w.cols;
  const std::int64_t groups = groups_of(cols, op.group_size);
  float* const w = op.w.f32();
  const float* const s = op.column_scales.f32();
  const float* const grams = op.grams.f32();
  float* const errors = op.errors.f32();
  auto* const choices = static_cast<std::uint8_t*>(op.choices.data);
  const int qmax = (1 << op.bits) - 1;
  const std::int64_t together = rows_together(op.group_size);
  const std::int64_t strips = (rows + together - 1) / together;

  for_each_piece(threads_, groups * strips, [&](std::int64_t piece) {
    const std::int64_t group = piece / strips, first = group * op.group_size;
    const std::int64_t n = std::min(op.group_size, cols - first);
    const std::int64_t begin = piece % strips * together, end = std::min(rows, begin + together);
    const std::int64_t trials = (end - begin) * op.candidates;
    std::vector<float> clipped(static_cast<std::size_t>(n));
    std::vector<float> delta(static_cast<std::size_t>(trials * n)), product(delta.size());
    const auto largest_of = [&](const float* values) {
      const auto [lo, hi] = range_of(values, n);
      return std::max(std::fabs(lo), std::fabs(hi));
    };
    for (std::int64_t row = begin; row < end; ++row) {
      const float* const values = w + row * op.w.stride + first;
      const float largest = largest_of(values);
      for (int j = 0; j < op.candidates; ++j) {
        float* const out = delta.data() + ((row - begin) * op.candidates + j) * n;
        clamp(values, n, bound_of(largest, j, op.divisions), clipped.data());
        const auto [lo, hi] = range_of(clipped.data(), n);
        const GridPoint point = grid_point_of(op.grid, op.bits, lo, hi);
        if (!is_usable(point.scale) || !(hi - lo >= 0.0f)) {
          std::fill_n(out, n, std::numeric_limits<float>::quiet_NaN());
        } else {
          rounding_delta(clipped.data(), values, s + first, n, point, qmax, out);
        }
      }
    }
    sgemm({.m = trials,
           .n = n,
           .k = n,
           .a = delta.data(),
           .a_stride = n,
           .b = grams + first * op.grams.stride,
           .b_stride = op.grams.stride,
           .c = product.data(),
           .c_stride = n});
    for (std::int64_t row = begin; row < end; ++row) {
      float* const values = w + row * op.w.stride + first;
      float* const found = errors + row * op.errors.stride + 2 * group;
      int best = 0;
      float least = std::numeric_limits<float>::infinity();
      for (int j = 0; j < op.candidates; ++j) {
        const std::int64_t trial = ((row - begin) * op.candidates + j) * n;
        const auto error =
            static_cast<float>(dot_product(delta.data() + trial, product.data() + trial, n));
        if (j == 0) found[0] = error;
        if (error < least) {
          least = error;
          best = j;
        }
      }
      found[1] = least;
      choices[row * op.choices.stride + group] = static_cast<std::uint8_t>(best);
      clamp(values, n, bound_of(largest_of(values), best, op.divisions), values);
    }
  });
}

}  // namespace roundhouse
