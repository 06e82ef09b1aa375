// Cross-entropy of logits, forward and backward.
#include "base/error.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/row_maximum.cuh"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct CrossEntropyParts {
  double sum[kWarps];
  Ranked largest[kWarps];
};

struct LogSum {
  double value;
  int largest;  // the column of the largest logit
};

// log(sum exp) of a row, by all threads of a block. A thread sums in F32, the block in double.
template <class T, int kWidth>
__device__ LogSum log_sum_exp_of_row(const ConstMatrix& logits, std::int64_t row,
                                     CrossEntropyParts& parts) {
  const int cols = static_cast<int>(logits.cols);
  const Ranked ranked = largest_of_row<T, kWidth, kThreads>(logits, row, parts.largest);
  const float largest = value_of(ranked);
  float sum = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(logits, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += expf(x.at[i] - largest);
  }
  const double total = block_reduce<kThreads>(static_cast<double>(sum), parts.sum, Plus());
  return {static_cast<double>(largest) + log(total), column_of(ranked)};
}

// One block a row.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(ConstMatrix logits, const std::int32_t* targets, float* losses,
                         std::int32_t* largest) {
  const std::int64_t row = blockIdx.x;
  const std::int32_t target = targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) {
      losses[row] = 0.0f;
      if (largest) largest[row] = -1;
    }
    return;
  }
  const LogSum sum = log_sum_exp_of_row<T, kWidth>(logits, row, shared_memory<CrossEntropyParts>());
  if (threadIdx.x == 0) {
    const float x = load<T, 1>(logits, row, target).at[0];
    losses[row] = static_cast<float>(sum.value - static_cast<double>(x));
    if (largest) largest[row] = sum.largest;
  }
}

// One block a row.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) log_sum_exp_kernel(LogSumExp op) {
  const std::int64_t row = blockIdx.x;
  const double here =
      log_sum_exp_of_row<float, kWidth>(op.x, row, shared_memory<CrossEntropyParts>()).value;
  if (threadIdx.x > 0) return;
  float& sum = static_cast<float*>(op.sums.data)[row * op.sums.stride];
  const double before = static_cast<double>(sum);
  const double larger = before > here ? before : here;
  sum = static_cast<float>(op.accumulate ? larger + log1p(exp(-fabs(before - here))) : here);
}

// Rows of one block each: a thread writes the columns that it read, so that d_logits may be logits.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) cross_entropy_backward_kernel(CrossEntropyBackward op) {
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.logits.cols);
  const std::int32_t target = static_cast<const std::int32_t*>(op.target.data)[row];
  const bool scored = target >= 0;
  const std::int64_t at = target - op.first;  // among these columns
  const float sum = load<float, 1>(op.log_sum_exp, row, 0).at[0];
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<float, kWidth>(op.logits, row, col);
    Floats<kWidth> d;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      d.at[i] = scored ? op.scale * expf(x.at[i] - sum) : 0.0f;
      if (scored && col + i == at) {
        d.at[i] -= op.scale;
        static_cast<float*>(op.loss.data)[row * op.loss.stride] = sum - x.at[i];
      }
      if (op.soft_cap > 0.0f) {
        const float t = x.at[i] / op.soft_cap;
        d.at[i] *= 1.0f - t * t;
      }
    }
    store<T, kWidth>(d, op.d_logits, row, col);
  }
}

}  // namespace

void CudaBackend::run(const CrossEntropy& op) {
  const std::int64_t rows = op.logits.rows;
  check_columns(op.logits.cols);
  const Buffer targets = allocate(op.target.size_bytes());
  const Buffer losses = allocate(op.loss.size_bytes());
  const Buffer largest = op.largest.empty() ? Buffer() : allocate(op.largest.size_bytes());
  upload(std::as_bytes(op.target), targets.get());
  with_activation_type(op.logits.type, [&](auto type) {
    with_width(can_pack(op.logits), [&](auto width) {
      launch(cross_entropy_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(rows),
              .threads = kThreads,
              .shared_bytes = sizeof(CrossEntropyParts),
              .stream = device_->stream()},
             op.logits, reinterpret_cast<const std::int32_t*>(targets.get()),
             reinterpret_cast<float*>(losses.get()),
             reinterpret_cast<std::int32_t*>(largest.get()));
    });
  });
  download(losses.get(), std::as_writable_bytes(op.loss));
  if (!op.largest.empty()) download(largest.get(), std::as_writable_bytes(op.largest));
}

void CudaBackend::run(const LogSumExp& op) {
  check_columns(op.x.cols);
  with_width(can_pack(op.x), [&](auto width) {
    launch(log_sum_exp_kernel<width()>,
           {.grid = blocks_for(op.x.rows),
            .threads = kThreads,
            .shared_bytes = sizeof(CrossEntropyParts),
            .stream = device_->stream()},
           op);
  });
}

void CudaBackend::run(const CrossEntropyBackward& op) {
  check_columns(op.logits.cols);
  with_activation_type(op.d_logits.type, [&](auto type) {
    with_width(can_pack(op.logits) && can_pack(op.d_logits), [&](auto width) {
      launch(cross_entropy_backward_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.logits.rows), .threads = kThreads, .stream = device_->stream()},
             op);
    });
  });
}

}  // namespace roundhouse
