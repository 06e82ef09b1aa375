// Kullback-Leibler divergences of rows of logits.
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

struct DivergenceParts {
  double sum[kWarps];
  Ranked largest[kWarps];
};

// One block a row.
template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    compare_logits_kernel(ConstMatrix reference, ConstMatrix logits, Divergence* divergences) {
  const std::int64_t row = blockIdx.x;
  auto& parts = shared_memory<DivergenceParts>();
  const Ranked top = largest_of_row<float, kWidth, kThreads>(reference, row, parts.largest);
  const Ranked other_top = largest_of_row<float, kWidth, kThreads>(logits, row, parts.largest);
  double sum = 0, other_sum = 0, difference = 0;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < reference.cols;
       col += kThreads * kWidth) {
    const Floats<kWidth> x = load<float, kWidth>(reference, row, col);
    const Floats<kWidth> y = load<float, kWidth>(logits, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float a = x.at[i] - value_of(top), b = y.at[i] - value_of(other_top);
      const double p = static_cast<double>(expf(a));
      sum += p;
      other_sum += static_cast<double>(expf(b));
      difference += p * (static_cast<double>(a) - static_cast<double>(b));
    }
  }
  sum = block_reduce<kThreads>(sum, parts.sum, Plus());
  other_sum = block_reduce<kThreads>(other_sum, parts.sum, Plus());
  difference = block_reduce<kThreads>(difference, parts.sum, Plus());
  if (threadIdx.x > 0) return;
  // sum p (a - ln sum e^a - b + ln sum e^b)
  divergences[row] = {.nats = difference / sum - log(sum) + log(other_sum),
                      .same_top = column_of(top) == column_of(other_top) ? 1 : 0};
}

}  // namespace

void CudaBackend::run(const CompareLogits& op) {
  check_columns(op.logits.cols);
  const Buffer divergences = allocate(op.divergences.size_bytes());
  with_width(can_pack(op.reference) && can_pack(op.logits), [&](auto width) {
    launch(compare_logits_kernel<width()>,
           {.grid = blocks_for(op.logits.rows),
            .threads = kThreads,
            .shared_bytes = sizeof(DivergenceParts),
            .stream = device_->stream()},
           op.reference, op.logits, reinterpret_cast<Divergence*>(divergences.get()));
  });
  download(divergences.get(), std::as_writable_bytes(op.divergences));
}

}  // namespace roundhouse
