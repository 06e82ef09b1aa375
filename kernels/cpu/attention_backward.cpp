// The backward pass of attention by blocks of queries and keys (Dao et al. 2022): scores are computed again, exp(score -
// log_sum_exp) is the softmax at once.
#include <algorithm>
#include <memory>

#include "base/error.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sgemm.h"
#include "kernels/cpu/vector_math.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kQueries = 128;
constexpr std::int64_t kKeys =
    256;  // with kQueries: two squares of 128 KB, in the second-level cache

// What one thread works in.
struct Scratch {
  float softmax[kQueries * kKeys];  // P
  float slope[kQueries * kKeys];    // d_out vᵀ, then dS
};

[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] float dot(const float* a,
                                                                                const float* b,
                                                                                std::int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// One query's unscaled scores become P and its d_out vᵀ becomes dS. Only keys [first, last) are seen; the rest of [0, keys)
// becomes 0.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void softmax_backward_row(
    float* softmax, float* slope, std::int64_t first, std::int64_t last, std::int64_t keys,
    float scale, float log_sum_exp, float d) {
  for (std::int64_t j = 0; j < first; ++j) softmax[j] = slope[j] = 0.0f;
  for (std::int64_t j = last; j < keys; ++j) softmax[j] = slope[j] = 0.0f;
#pragma omp simd
  for (std::int64_t j = first; j < last; ++j) {
    const float p = fast_exp(softmax[j] * scale - log_sum_exp);
    softmax[j] = p;
    slope[j] = p * (slope[j] - d) * scale;
  }
}

// The same of capped scores.
[[gnu::target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")]] void
capped_softmax_backward_row(float* softmax, float* slope, std::int64_t first, std::int64_t last,
                            std::int64_t keys, float scale, float cap, float log_sum_exp, float d) {
  for (std::int64_t j = 0; j < first; ++j) softmax[j] = slope[j] = 0.0f;
  for (std::int64_t j = last; j < keys; ++j) softmax[j] = slope[j] = 0.0f;
  const float factor = scale / cap;
#pragma omp simd
  for (std::int64_t j = first; j < last; ++j) {
    const float t = fast_tanh(softmax[j] * factor);
    const float p = fast_exp(cap * t - log_sum_exp);
    softmax[j] = p;
    slope[j] = p * (slope[j] - d) * scale * (1.0f - t * t);
  }
}

// Columns of one head.
struct Columns {
  const float* data;
  std::int64_t stride;
};
struct MutableColumns {
  float* data;
  std::int64_t stride;
};
MutableColumns columns(const Matrix& m, std::int64_t row, std::int64_t col) {
  return {m.f32() + row * m.stride + col, m.stride};
}
Columns columns(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return {m.f32() + row * m.stride + col, m.stride};
}

// dst[row, kv head] = the sum of src[row, head] over the head's group, in order.
void sum_groups(const float* src, std::int64_t group, std::int64_t head_dim, std::int64_t kv_heads,
                float* dst) {
  for (std::int64_t head = 0; head < kv_heads; ++head) {
    const float* from = src + head * group * head_dim;
    float* const to = dst + head * head_dim;
    std::copy_n(from, head_dim, to);
    for (std::int64_t g = 1; g < group; ++g) {
      from += head_dim;
      for (std::int64_t i = 0; i < head_dim; ++i) to[i] += from[i];
    }
  }
}

}  // namespace

void CpuBackend::run(const AttentionBackward& op) {
  const std::int64_t tokens = op.q.rows, head_dim = op.head_dim, length = op.length;
  const std::int64_t group = op.heads / op.kv_heads;

  // One piece is a query head of a sequence: enough to share, where key/value heads are few. Its dk and dv then go aside.
  Tensor dk_aside, dv_aside;
  Matrix dk = op.dk, dv = op.dv;
  if (group > 1) {
    dk_aside = Tensor(*this, DType::kF32, tokens, op.heads * head_dim);
    dv_aside = Tensor(*this, DType::kF32, tokens, op.heads * head_dim);
    dk = dk_aside.view();
    dv = dv_aside.view();
  }
  const std::unique_ptr<Scratch[]> scratch(new Scratch[threads_.size()]);
  threads_.run(tokens / length * op.heads, [&](std::int64_t piece, int thread) {
    Scratch& mine = scratch[thread];
    const std::int64_t head = piece % op.heads;
    const std::int64_t start = piece / op.heads * length;
    const std::int64_t col = head * head_dim, kv_col = head / group * head_dim;
    for (std::int64_t row = start; row < start + length; ++row) {
      std::fill_n(columns(op.dq, row, col).data, head_dim, 0.0f);
      std::fill_n(columns(dk, row, col).data, head_dim, 0.0f);
      std::fill_n(columns(dv, row, col).data, head_dim, 0.0f);
    }
    for (std::int64_t begin = 0; begin < length; begin += kQueries) {
      const std::int64_t queries = std::min(kQueries, length - begin);
      const Columns q = columns(op.q, start + begin, col);
      const Columns out = columns(op.out, start + begin, col);
      const Columns d_out = columns(op.d_out, start + begin, col);
      const MutableColumns dq = columns(op.dq, start + begin, col);
      float d[kQueries];
      for (std::int64_t r = 0; r < queries; ++r) {
        d[r] = dot(d_out.data + r * d_out.stride, out.data + r * out.stride, head_dim);
      }
      const std::int64_t seen_by_first =
          op.window > 0 ? std::max<std::int64_t>(0, begin - op.window + 1) : 0;
      for (std::int64_t key = seen_by_first; key < begin + queries; key += kKeys) {
        const std::int64_t keys = std::min(kKeys, begin + queries - key);
        const Columns k = columns(op.k, start + key, kv_col);
        const Columns v = columns(op.v, start + key, kv_col);
        const MutableColumns dk_block = columns(dk, start + key, col);
        const MutableColumns dv_block = columns(dv, start + key, col);
        // Block row by column: c = a bᵀ, both [.., head_dim].
        const auto scores = [&](const Columns& a, const Columns& b, float* c) {
          sgemm({.m = queries,
                 .n = keys,
                 .k = head_dim,
                 .a = a.data,
                 .a_stride = a.stride,
                 .b = b.data,
                 .b_stride = b.stride,
                 .transpose_b = true,
                 .c = c,
                 .c_stride = kKeys});
        };
        scores(q, k, mine.softmax);
        scores(d_out, v, mine.slope);
        for (std::int64_t r = 0; r < queries; ++r) {
          const std::int64_t position = begin + r;
          const std::int64_t last = std::clamp<std::int64_t>(position + 1 - key, 0, keys);
          const std::int64_t first =
              op.window > 0 ? std::clamp<std::int64_t>(position - op.window + 1 - key, 0, last) : 0;
          const float* const sums =
              op.log_sum_exp.f32() + (start + position) * op.log_sum_exp.stride;
          if (op.score_cap > 0.0f) {
            capped_softmax_backward_row(mine.softmax + r * kKeys, mine.slope + r * kKeys, first,
                                        last, keys, op.scale, op.score_cap, sums[head], d[r]);
          } else {
            softmax_backward_row(mine.softmax + r * kKeys, mine.slope + r * kKeys, first, last,
                                 keys, op.scale, sums[head], d[r]);
          }
        }
        // dk += dSᵀ q, dv += Pᵀ d_out
        const auto add_to_keys = [&](const float* a, const Columns& b, const MutableColumns& c) {
          sgemm({.m = keys,
                 .n = head_dim,
                 .k = queries,
                 .a = a,
                 .a_stride = kKeys,
                 .transpose_a = true,
                 .b = b.data,
                 .b_stride = b.stride,
                 .c = c.data,
                 .c_stride = c.stride,
                 .beta = 1.0f});
        };
        add_to_keys(mine.slope, q, dk_block);
        add_to_keys(mine.softmax, d_out, dv_block);
        sgemm({.m = queries,
               .n = head_dim,
               .k = keys,
               .a = mine.slope,
               .a_stride = kKeys,
               .b = k.data,
               .b_stride = k.stride,
               .c = dq.data,
               .c_stride = dq.stride,
               .beta = 1.0f});
      }
    }
  });
  if (group == 1) return;
  for_each_range(threads_, tokens, rows_per_piece(op.q.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     sum_groups(columns(dk, row, 0).data, group, head_dim, op.kv_heads,
                                columns(op.dk, row, 0).data);
                     sum_groups(columns(dv, row, 0).data, group, head_dim, op.kv_heads,
                                columns(op.dv, row, 0).data);
                   }
                 });
}

}  // namespace roundhouse
