#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/sparse_row.cuh"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

__device__ float looked_up(const DequantizeTable& op, std::int64_t row, std::int64_t col) {
  const int code = static_cast<const std::uint8_t*>(op.codes.data)[row * op.codes.stride + col];
  if (code >= op.tables.cols) __trap();  // found when the host next waits
  return static_cast<const float*>(op.tables.data)[row * op.tables.stride + code];
}

template <class T, int kWidth>
struct LookUp {
  DequantizeTable op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> w;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) w.at[i] = looked_up(op, row, col + i);
    store<T, kWidth>(w, op.w, row, col);
  }
};

// A warp a row: once more the values that have something added.
template <class T>
__global__ void __launch_bounds__(kThreads) add_sparse_kernel(DequantizeTable op) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (row >= op.w.rows) return;
  for_each_entry(op.sparse, row, op.w.cols, [&](std::int64_t col, float value) {
    store<T, 1>(Floats<1>{{looked_up(op, row, col) + value}}, op.w, row, col);
  });
}

}  // namespace

void CudaBackend::run(const DequantizeTable& op) {
  check_columns(op.w.cols);
  with_float_type(op.w.type, [&](auto type) {
    using T = typename decltype(type)::type;
    with_width(can_pack(op.codes) && can_pack(op.w), [&](auto width) {
      for_each_element(op.w.rows, op.w.cols, width, device_->stream(), LookUp<T, width()>{op});
    });
    if (is_empty(op.sparse)) return;
    launch(
        add_sparse_kernel<T>,
        {.grid = blocks_for(op.w.rows, kWarps), .threads = kThreads, .stream = device_->stream()},
        op);
  });
}

}  // namespace roundhouse
