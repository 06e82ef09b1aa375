// Attention by blocks of queries and keys with a running softmax (Milakov and Gimelshein 2018; Dao
// et al. 2022): for a query, m is the largest score so far, l the sum of exp(score - m) and o the
// sum of exp(score - m) v; when a block raises m, l and o are multiplied by exp(old m - new m).
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kQueries = 128;
constexpr std::int64_t kKeys = 512;  // with kQueries: 256 KB of scores, in the second-level cache

// What one thread works in.
struct Scratch {
  float score[kQueries * kKeys];
  float largest[kQueries];  // m
  float sum[kQueries];      // l
};

// Unscaled scores [first, last) become capped ones.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void cap_row(
    float* score, std::int64_t first, std::int64_t last, float scale, float cap) {
  const float factor = scale / cap;
#pragma omp simd
  for (std::int64_t i = first; i < last; ++i) score[i] = cap * fast_tanh(score[i] * factor);
}

// Turns one query's scores of a block (unscaled) into exp(score - m). Only keys [first, last) are
// seen; the rest of [0, keys) becomes 0. `o` is rescaled where m rises. Precondition: first < last.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void softmax_row(
    float* score, std::int64_t first, std::int64_t last, std::int64_t keys, float scale,
    float& largest, float& sum, float* o, std::int64_t head_dim) {
  for (std::int64_t j = 0; j < first; ++j) score[j] = 0.0f;
  for (std::int64_t j = last; j < keys; ++j) score[j] = 0.0f;
  float block_largest = -std::numeric_limits<float>::infinity();
  std::int64_t j = first;
  if (last - first >= kLanes) {
    Lanes high = *reinterpret_cast<const Lanes*>(score + first);
    for (; j + kLanes <= last; j += kLanes) {
      const Lanes x = *reinterpret_cast<const Lanes*>(score + j);
      high = x > high ? x : high;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      block_largest = high[lane] > block_largest ? high[lane] : block_largest;
    }
  }
  for (; j < last; ++j) block_largest = score[j] > block_largest ? score[j] : block_largest;

  const float scaled = block_largest * scale;
  const float m = scaled > largest ? scaled : largest;
  float part = 0.0f;
#pragma omp simd reduction(+ : part)
  for (std::int64_t i = first; i < last; ++i) {
    score[i] = fast_exp(score[i] * scale - m);
    part += score[i];
  }
  if (m > largest) {
    const float factor = fast_exp(largest - m);  // 0 at the first block: largest is -infinity
    sum *= factor;
    for (std::int64_t i = 0; i < head_dim; ++i) o[i] *= factor;
    largest = m;
  }
  sum += part;
}

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void divide_row(
    float* o, float divisor, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) o[i] /= divisor;
}

}  // namespace

void CpuBackend::run(const Attention& op) {
  const std::int64_t tokens = op.q.rows;
  const std::int64_t head_dim = op.head_dim;
  const float scale = op.score_cap > 0.0f ? 1.0f : op.scale;  // of what softmax_row() reads
  const bool keeps_sums = op.log_sum_exp.data != nullptr;
  const float* const q = op.q.f32();
  const float* const k = op.k.f32();
  const float* const v = op.v.f32();
  float* const out = op.out.f32();
  float* const sums = keeps_sums ? op.log_sum_exp.f32() : nullptr;

  const std::int64_t blocks = (op.length + kQueries - 1) / kQueries;
  const std::int64_t sequences = tokens / op.length;
  const std::unique_ptr<Scratch[]> scratch(new Scratch[threads_.size()]);
  threads_.run(sequences * op.heads * blocks, [&](std::int64_t piece, int thread) {
    Scratch& mine = scratch[thread];
    // Late queries see most keys: their blocks come first, so that threads end together.
    const std::int64_t block = blocks - 1 - piece / (sequences * op.heads);
    const std::int64_t head = piece % op.heads;
    const std::int64_t start = piece / op.heads % sequences * op.length;  // row of the first token
    const std::int64_t kv_column = head / (op.heads / op.kv_heads) * head_dim;
    const std::int64_t begin = block * kQueries;
    const std::int64_t queries = std::min(kQueries, op.length - begin);
    const std::int64_t seen_by_first =
        op.window > 0 ? std::max<std::int64_t>(0, begin - op.window + 1) : 0;
    float* const o = out + (start + begin) * op.out.stride + head * head_dim;

    std::fill_n(mine.largest, queries, -std::numeric_limits<float>::infinity());
    std::fill_n(mine.sum, queries, 0.0f);
    for (std::int64_t r = 0; r < queries; ++r) std::fill_n(o + r * op.out.stride, head_dim, 0.0f);

    for (std::int64_t key = seen_by_first; key < begin + queries; key += kKeys) {
      const std::int64_t keys = std::min(kKeys, begin + queries - key);
      sgemm({.m = queries,
             .n = keys,
             .k = head_dim,
             .a = q + (start + begin) * op.q.stride + head * head_dim,
             .a_stride = op.q.stride,
             .b = k + (start + key) * op.k.stride + kv_column,
             .b_stride = op.k.stride,
             .transpose_b = true,
             .c = mine.score,
             .c_stride = kKeys});
      for (std::int64_t r = 0; r < queries; ++r) {
        const std::int64_t position = begin + r;
        const std::int64_t last = std::min(keys, position + 1 - key);
        const std::int64_t first =
            op.window > 0 ? std::max<std::int64_t>(0, position - op.window + 1 - key) : 0;
        float* const score = mine.score + r * kKeys;
        if (first >= last) {
          std::fill_n(score, keys, 0.0f);
        } else {
          if (op.score_cap > 0.0f) cap_row(score, first, last, op.scale, op.score_cap);
          softmax_row(score, first, last, keys, scale, mine.largest[r], mine.sum[r],
                      o + r * op.out.stride, head_dim);
        }
      }
      sgemm({.m = queries,
             .n = head_dim,
             .k = keys,
             .a = mine.score,
             .a_stride = kKeys,
             .b = v + (start + key) * op.v.stride + kv_column,
             .b_stride = op.v.stride,
             .c = o,
             .c_stride = op.out.stride,
             .beta = 1.0f});
    }
    for (std::int64_t r = 0; r < queries; ++r) {
      divide_row(o + r * op.out.stride, mine.sum[r], head_dim);
      if (sums == nullptr) continue;
      sums[(start + begin + r) * op.log_sum_exp.stride + head] =
          mine.largest[r] + std::log(mine.sum[r]);
    }
  });
}

}  // namespace roundhouse
