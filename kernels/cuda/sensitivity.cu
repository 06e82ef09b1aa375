#include "kernels/sensitivity.h"

#include <algorithm>
#include <vector>

#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/float_key.h"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kCountedRows = 8;  // of a block that counts
constexpr int kSums = 3;         // of RoundingSums
constexpr int kMostSums = kSums * static_cast<int>(kMostRoundingWidths);

struct Widths {
  int count;
  RoundingWidth at[kMostRoundingWidths];
};

// One block a row; its sums go to of_row[row], three a width.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rounding_products_kernel(ConstMatrix gradients, ConstMatrix weights, int group_size,
                             Widths widths, double* of_row) {
  double* const parts = shared_memory<double[kWarps]>();
  const std::int64_t row = blockIdx.x;
  double sums[kMostSums] = {};
  for (int col = static_cast<int>(threadIdx.x); col < weights.cols; col += kThreads) {
    const float w = load<T, 1>(weights, row, col).at[0];
    const double gradient = static_cast<double>(load<float, 1>(gradients, row, col).at[0]);
    const int group = col / group_size;
#pragma unroll
    for (int i = 0; i < static_cast<int>(kMostRoundingWidths); ++i) {
      if (i >= widths.count) break;
      const RoundingWidth& width = widths.at[i];
      const float scale =
          static_cast<const float*>(width.scales.data)[row * width.scales.stride + group];
      const int zero =
          static_cast<const std::uint8_t*>(width.zeros.data)[row * width.zeros.stride + group];
      const float value = value_of(code_of(w, scale, zero, (1 << width.bits) - 1), scale, zero);
      const double moved =
          fabsf(w) > width.kept_above ? 0.0 : static_cast<double>(w) - static_cast<double>(value);
      const double product = gradient * moved;
      sums[kSums * i] += product;
      sums[kSums * i + 1] += fabs(product);
      sums[kSums * i + 2] += product * product;
    }
  }
#pragma unroll
  for (int i = 0; i < kMostSums; ++i) {
    if (i >= kSums * widths.count) break;
    const double sum = block_reduce<kThreads>(sums[i], parts, Plus());
    if (threadIdx.x == 0) of_row[row * kSums * widths.count + i] = sum;
  }
}

// Block i adds up column i.
__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(const double* of_row, std::int64_t rows, double* sums) {
  double* const parts = shared_memory<double[kWarps]>();
  double sum = 0.0;
  for (std::int64_t row = threadIdx.x; row < rows; row += kThreads)
    sum += of_row[row * gridDim.x + blockIdx.x];
  sum = block_reduce<kThreads>(sum, parts, Plus());
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

using Count = unsigned long long;  // what atomicAdd knows

// Each block counts kCountedRows rows in shared memory. bucket(row, col) is what an element counts for, or at least `buckets`.
template <class Bucket>
__global__ void __launch_bounds__(kThreads)
    count_kernel(std::int64_t rows, int cols, int buckets, Count* counts, Bucket bucket) {
  unsigned* const mine = reinterpret_cast<unsigned*>(dynamic_shared);
  for (int i = static_cast<int>(threadIdx.x); i < buckets; i += kThreads) mine[i] = 0;
  __syncthreads();
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kCountedRows;
  for (std::int64_t row = first; row < first + kCountedRows && row < rows; ++row) {
    for (int col = static_cast<int>(threadIdx.x); col < cols; col += kThreads) {
      const unsigned at = bucket(row, col);
      if (at < static_cast<unsigned>(buckets)) atomicAdd(&mine[at], 1u);
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < buckets; i += kThreads) {
    if (mine[i] > 0) atomicAdd(&counts[i], static_cast<Count>(mine[i]));
  }
}

struct KeyBucket {
  ConstMatrix x;
  bool magnitude;
  int shift;
  std::uint64_t first;
  unsigned buckets;
  __device__ unsigned operator()(std::int64_t row, int col) const {
    const float value = static_cast<const float*>(x.data)[row * x.stride + col];
    const std::uint64_t at =
        (std::uint64_t{key_of(magnitude ? fabsf(value) : value)} >> shift) - first;
    return at < buckets ? static_cast<unsigned>(at) : buckets;
  }
};

struct Thresholds {
  int count;
  float at[kMostThresholds];
};

// The last threshold that the weight reaches.
struct LargeBucket {
  ConstMatrix w;
  ConstMatrix sensitivity;
  float sensitive_above;
  Thresholds thresholds;
  __device__ unsigned operator()(std::int64_t row, int col) const {
    constexpr unsigned kNone = 0xffffffffu;
    const float magnitude = fabsf(static_cast<const float*>(w.data)[row * w.stride + col]);
    if (!(magnitude >= thresholds.at[0])) return kNone;
    if (sensitivity.data != nullptr &&
        static_cast<const float*>(sensitivity.data)[row * sensitivity.stride + col] >
            sensitive_above) {
      return kNone;
    }
    int last = 0;
    while (last + 1 < thresholds.count && magnitude >= thresholds.at[last + 1]) ++last;
    return static_cast<unsigned>(last);
  }
};

template <class Bucket>
std::vector<Count> count(CudaDevice& device, const ConstMatrix& m, std::size_t buckets,
                         const Bucket& bucket) {
  check_columns(m.cols);
  const Buffer counts = device.pool().allocate(buckets * sizeof(Count));
  check(cudaMemsetAsync(counts.get(), 0, buckets * sizeof(Count), device.stream()),
        "cudaMemsetAsync");
  launch(count_kernel<Bucket>,
         {.grid = blocks_for(m.rows, kCountedRows),
          .threads = kThreads,
          .shared_bytes = buckets * sizeof(unsigned),
          .stream = device.stream()},
         m.rows, static_cast<int>(m.cols), static_cast<int>(buckets),
         reinterpret_cast<Count*>(counts.get()), bucket);
  std::vector<Count> host(buckets);
  device.staging().download(counts.get(), std::as_writable_bytes(std::span(host)));
  return host;
}

struct Remove {
  RemoveOutliers op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    float& w = static_cast<float*>(op.w.data)[row * op.w.stride + col];
    float& sensitivity =
        static_cast<float*>(op.sensitivity.data)[row * op.sensitivity.stride + col];
    const bool out = fabsf(w) >= op.large_from || sensitivity > op.sensitive_above;
    if (out) w = sensitivity = 0.0f;
    static_cast<std::uint8_t*>(op.removed.data)[row * op.removed.stride + col] = out ? 1 : 0;
  }
};

}  // namespace

void CudaBackend::run(const RoundingProducts& op) {
  check_columns(op.w.cols);
  Widths widths{static_cast<int>(op.widths.size()), {}};
  std::ranges::copy(op.widths, widths.at);
  const std::size_t sums = kSums * op.widths.size();
  const Buffer of_row = allocate(static_cast<std::size_t>(op.w.rows) * sums * sizeof(double));
  const Buffer of_all = allocate(sums * sizeof(double));
  auto* const rows = reinterpret_cast<double*>(of_row.get());
  const Launch how{.grid = blocks_for(op.w.rows),
                   .threads = kThreads,
                   .shared_bytes = sizeof(double[kWarps]),
                   .stream = device_->stream()};
  with_activation_type(op.w.type, [&](auto type) {
    launch(rounding_products_kernel<typename decltype(type)::type>, how, op.gradient, op.w,
           static_cast<int>(std::min(op.group_size, op.w.cols)), widths, rows);
  });
  launch(add_rows_kernel,
         {.grid = blocks_for(static_cast<std::int64_t>(sums)),
          .threads = kThreads,
          .shared_bytes = sizeof(double[kWarps]),
          .stream = device_->stream()},
         rows, op.w.rows, reinterpret_cast<double*>(of_all.get()));
  std::vector<double> host(sums);
  download(of_all.get(), std::as_writable_bytes(std::span(host)));
  for (std::size_t i = 0; i < op.sums.size(); ++i) {
    op.sums[i] = {host[kSums * i], host[kSums * i + 1], host[kSums * i + 2]};
  }
}

void CudaBackend::run(const CountKeys& op) {
  const std::vector<Count> counts = count(
      *device_, op.x, op.counts.size(),
      KeyBucket{op.x, op.magnitude, 32 - op.prefix_bits - op.bits,
                std::uint64_t{op.prefix} << op.bits, static_cast<unsigned>(op.counts.size())});
  for (std::size_t i = 0; i < counts.size(); ++i)
    op.counts[i] += static_cast<std::int64_t>(counts[i]);
}

void CudaBackend::run(const CountLarge& op) {
  Thresholds thresholds{static_cast<int>(op.thresholds.size()), {}};
  std::ranges::copy(op.thresholds, thresholds.at);
  const std::vector<Count> counts =
      count(*device_, op.w, op.thresholds.size(),
            LargeBucket{op.w, op.sensitivity, op.sensitive_above, thresholds});
  std::int64_t sum = 0;  // of the thresholds above too
  for (std::size_t i = counts.size(); i-- > 0;)
    op.counts[i] += sum += static_cast<std::int64_t>(counts[i]);
}

void CudaBackend::run(const RemoveOutliers& op) {
  check_columns(op.w.cols);
  for_each_element(op.w.rows, op.w.cols, 1, device_->stream(), Remove{op});
}

}  // namespace roundhouse
