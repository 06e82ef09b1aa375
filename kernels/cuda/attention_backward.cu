#include "base/error.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"

namespace roundhouse {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;
constexpr int kMostHeadDim = 256;
constexpr int kPerLane = kMostHeadDim / kWarp;

template <class T>
__device__ const T* head_of(const ConstMatrix& m, std::int64_t row, std::int64_t column) {
  return static_cast<const T*>(m.data) + row * m.stride + column;
}

// A warp a token and head.
template <class T>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(AttentionBackward op, RowSums* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (piece >= op.q.rows * op.heads) return;
  const std::int64_t row = piece / op.heads;
  const std::int64_t head = piece % op.heads;
  const T* const out = head_of<T>(op.out, row, head * op.head_dim);
  const T* const d_out = head_of<T>(op.d_out, row, head * op.head_dim);
  float d = 0.0f;
  for (int i = lane; i < op.head_dim; i += kWarp) d += to_float(out[i]) * to_float(d_out[i]);
  d = warp_reduce(d, Plus());
  if (lane == 0) {
    const float log_sum_exp =
        static_cast<const float*>(op.log_sum_exp.data)[row * op.log_sum_exp.stride + head];
    sums[(row / op.length * op.heads + head) * op.length + row % op.length] = {log_sum_exp, d};
  }
}

struct WarpScratch {
  float first[kMostHeadDim];   // of the warp's own row: q or k
  float second[kMostHeadDim];  // d_out or v
  float slope[kWarp];          // dS of the rows at hand
  float p[kWarp];
};

// With kOfKeys a warp has a key and meets the queries that see it, of all heads of its group, in order: dk and dv. Without,
// it has a query and meets the keys that it sees: dq. A lane takes one of the others for the scores, and columns for the sums.
template <class T, bool kOfKeys>
__global__ void __launch_bounds__(kThreads, 3)
    attention_backward_kernel(AttentionBackward op, RowSumsTable sums, UnscaledCap cap) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  WarpScratch& mine = shared_memory<WarpScratch[kWarps]>()[warp];
  const std::int64_t heads = kOfKeys ? op.kv_heads : op.heads;
  const std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (piece >= op.q.rows * heads) return;
  const std::int64_t row = piece / heads;
  const std::int64_t my_head = piece % heads;
  const std::int64_t group = op.heads / op.kv_heads;
  const int position = static_cast<int>(row % op.length);
  const int length = static_cast<int>(op.length);
  const std::int64_t start = row - position;
  const int head_dim = static_cast<int>(op.head_dim);
  const int window = op.window > 0 && op.window < op.length ? static_cast<int>(op.window) : length;
  const int begin = kOfKeys ? position : (position - window + 1 > 0 ? position - window + 1 : 0);
  const int end =
      kOfKeys ? (position + window < length ? position + window : length) : position + 1;

  const T* const own_first = head_of<T>(kOfKeys ? op.k : op.q, row, my_head * head_dim);
  const T* const own_second = head_of<T>(kOfKeys ? op.v : op.d_out, row, my_head * head_dim);
  for (int i = lane; i < head_dim; i += kWarp) {
    mine.first[i] = to_float(own_first[i]);
    mine.second[i] = to_float(own_second[i]);
  }
  __syncwarp();

  float of_first[kPerLane] = {};   // dq or dk
  float of_second[kPerLane] = {};  // dv
  for (std::int64_t g = 0; g < (kOfKeys ? group : 1); ++g) {
    const std::int64_t head = kOfKeys ? my_head * group + g : my_head;
    const std::int64_t column = (kOfKeys ? head : head / group) * head_dim;
    const RowSums* const of_head = sums + (row / op.length * op.heads + head) * op.length;
    for (int other = begin; other < end; other += kWarp) {
      const bool seen = other + lane < end;
      float p = 0.0f;
      float slope = 0.0f;
      if (seen) {
        const std::int64_t at = start + other + lane;
        const T* const first = head_of<T>(kOfKeys ? op.q : op.k, at, column);
        const T* const second = head_of<T>(kOfKeys ? op.d_out : op.v, at, column);
        float score = 0.0f;
        float dp = 0.0f;
        for (int i = 0; i < head_dim; ++i) {
          score += mine.first[i] * to_float(first[i]);
          dp += mine.second[i] * to_float(second[i]);
        }
        const RowSums row_sums = of_head[kOfKeys ? other + lane : position];
        float slope_of_score = op.scale;
        if (cap.inner > 0.0f) {
          const float t = cap.tanh_of(score);
          score = cap.outer * t;
          slope_of_score *= 1.0f - t * t;
        }
        p = expf(score * op.scale - row_sums.log_sum_exp);
        slope = p * (dp - row_sums.d) * slope_of_score;
      }
      mine.p[lane] = p;
      mine.slope[lane] = slope;
      __syncwarp();
      const int count = end - other < kWarp ? end - other : kWarp;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int col = kWarp * j + lane;
        if (col >= head_dim) break;
        for (int i = 0; i < count; ++i) {
          const std::int64_t at = start + other + i;
          of_first[j] +=
              mine.slope[i] * to_float(head_of<T>(kOfKeys ? op.q : op.k, at, column)[col]);
          if constexpr (kOfKeys) {
            of_second[j] += mine.p[i] * to_float(head_of<T>(op.d_out, at, column)[col]);
          }
        }
      }
      __syncwarp();
    }
  }

  const Matrix& to_first = kOfKeys ? op.dk : op.dq;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int col = kWarp * j + lane;
    if (col >= head_dim) break;
    const std::int64_t at = my_head * head_dim + col;
    store_float(of_first[j], static_cast<T*>(to_first.data)[row * to_first.stride + at]);
    if constexpr (kOfKeys) {
      store_float(of_second[j], static_cast<T*>(op.dv.data)[row * op.dv.stride + at]);
    }
  }
}

}  // namespace

void CudaBackend::run(const AttentionBackward& op) {
  require(op.head_dim <= kMostHeadDim && op.length < (1 << 30),
          "attention_backward: heads of up to 256 columns, sequences of up to 2^30 tokens");
  const std::int64_t tokens = op.q.rows;
  const Buffer sums = allocate(static_cast<std::size_t>(tokens * op.heads) * sizeof(RowSums));
  auto* const table = reinterpret_cast<RowSums*>(sums.get());
  const UnscaledCap cap(op.scale, op.score_cap);
  with_activation_type(op.q.type, [&](auto type) {
    using T = typename decltype(type)::type;
    const auto how = [&](std::int64_t heads, std::size_t shared_bytes) {
      return Launch{.grid = blocks_for(tokens * heads, kWarps),
                    .threads = kThreads,
                    .shared_bytes = shared_bytes,
                    .stream = device_->stream()};
    };
    launch(row_sums_kernel<T>, how(op.heads, 0), op, table);
    if (attention_backward_on_tensor_cores(op, table, *device_)) return;
    launch(attention_backward_kernel<T, false>, how(op.heads, sizeof(WarpScratch[kWarps])), op,
           table, cap);
    launch(attention_backward_kernel<T, true>, how(op.kv_heads, sizeof(WarpScratch[kWarps])), op,
           table, cap);
  });
}

}  // namespace roundhouse
