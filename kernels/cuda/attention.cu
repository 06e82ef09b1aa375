#include "base/error.h"
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"

namespace roundhouse {
namespace {

constexpr int kWarps = 4;
constexpr int kMostHeadDim = 256;
constexpr int kPerLane = kMostHeadDim / kWarp;

struct WarpScratch {
  float q[kMostHeadDim];
  float p[kWarp];  // exp(score - m) of the keys at hand
};

// A warp a query, a lane a key for the scores and a column for the output. m is the largest score so far, l the sum of
// exp(score - m); both output and l are rescaled where m rises.
template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) attention_kernel(Attention op, UnscaledCap cap) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  WarpScratch& mine = shared_memory<WarpScratch[kWarps]>()[warp];
  const std::int64_t piece = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp;
  if (piece >= op.q.rows * op.heads) return;
  const std::int64_t row = piece / op.heads;
  const std::int64_t head = piece % op.heads;
  const int position = static_cast<int>(row % op.length);
  const std::int64_t start = row - position;
  const int head_dim = static_cast<int>(op.head_dim);
  const std::int64_t kv_column = head / (op.heads / op.kv_heads) * head_dim;
  const std::int64_t beyond = position - op.window;  // the last key that a window hides
  const int first = op.window > 0 && beyond >= 0 ? static_cast<int>(beyond + 1) : 0;

  const T* const q = static_cast<const T*>(op.q.data) + row * op.q.stride + head * head_dim;
  for (int i = lane; i < head_dim; i += kWarp) mine.q[i] = to_float(q[i]);
  __syncwarp();
  float out[kPerLane] = {};
  float m = -INFINITY;
  float l = 0.0f;
  for (int begin = first; begin <= position; begin += kWarp) {
    const int key = begin + lane;
    const bool seen = key <= position;
    float score = -INFINITY;
    if (seen) {
      const T* const k = static_cast<const T*>(op.k.data) + (start + key) * op.k.stride + kv_column;
      float sum = 0.0f;
      for (int i = 0; i < head_dim; ++i) sum += mine.q[i] * to_float(k[i]);
      if (cap.inner > 0.0f) sum = cap.outer * cap.tanh_of(sum);
      score = sum * op.scale;
    }
    const float largest = warp_reduce(score, Larger());
    const float raised = largest > m ? largest : m;
    const float p = seen ? expf(score - raised) : 0.0f;
    const float factor = raised > m ? expf(m - raised) : 1.0f;
    m = raised;
    l = l * factor + warp_reduce(p, Plus());
    mine.p[lane] = p;
    __syncwarp();
    const int keys = position + 1 - begin < kWarp ? position + 1 - begin : kWarp;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      const int col = kWarp * j + lane;
      if (col >= head_dim) break;
      const T* const v =
          static_cast<const T*>(op.v.data) + (start + begin) * op.v.stride + kv_column + col;
      float sum = 0.0f;
      for (int i = 0; i < keys; ++i) sum += mine.p[i] * to_float(v[i * op.v.stride]);
      out[j] = out[j] * factor + sum;
    }
    __syncwarp();
  }
  T* const to = static_cast<T*>(op.out.data) + row * op.out.stride + head * head_dim;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int col = kWarp * j + lane;
    if (col < head_dim) store_float(out[j] / l, to[col]);
  }
  if (op.log_sum_exp.data != nullptr && lane == 0) {
    static_cast<float*>(op.log_sum_exp.data)[row * op.log_sum_exp.stride + head] = m + logf(l);
  }
}

}  // namespace

void attention_by_warps(const Attention& op, CudaDevice& device) {
  with_activation_type(op.q.type, [&](auto type) {
    launch(attention_kernel<typename decltype(type)::type>,
           {.grid = blocks_for(op.q.rows * op.heads, kWarps),
            .threads = kWarps * kWarp,
            .shared_bytes = sizeof(WarpScratch[kWarps]),
            .stream = device.stream()},
           op, UnscaledCap(op.scale, op.score_cap));
  });
}

void CudaBackend::run(const Attention& op) {
  require(op.head_dim <= kMostHeadDim && op.length < (1 << 30),
          "attention: heads of up to 256 columns, sequences of up to 2^30 tokens");
  if (!attention_on_tensor_cores(op, *device_)) attention_by_warps(op, *device_);
}

}  // namespace roundhouse
