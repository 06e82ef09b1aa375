#include <vector>

#include "base/error.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"
#include "kernels/cuda/gate.cuh"

namespace roundhouse {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// 1 / sqrt(variance + epsilon); 0 for a row of zeros without an epsilon, whose output does not depend on its input's scale.
__device__ double reciprocal_root(double variance, float epsilon) {
  const double sum = variance + static_cast<double>(epsilon);
  return sum > 0.0 ? 1.0 / sqrt(sum) : variance;  // NaN stays NaN
}

// dx (+)= dy (offset + weight) a + x b + c, by the thread that reads the same columns before.
template <class T, int kWidth, class Op>
__device__ void combine_row(const Op& op, std::int64_t row, float offset, float a, float b,
                            float c) {
  const int cols = static_cast<int>(op.x.cols);
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
    const Floats<kWidth> weight = load<T, kWidth>(op.weight, 0, col);
    Floats<kWidth> dx = load<T, kWidth>(op.dy, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      dx.at[i] = dx.at[i] * (offset + weight.at[i]) * a + x.at[i] * b + c;
    }
    if (op.accumulate) {
      const Floats<kWidth> before = load<T, kWidth>(op.dx, row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) dx.at[i] += before.at[i];
    }
    store<T, kWidth>(dx, op.dx, row, col);
  }
}

// One block a row; threads sum in F32, the block in double.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) rms_norm_backward_kernel(RmsNormBackward op) {
  double* const parts = shared_memory<double[kWarps]>();
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.x.cols);
  float xx = 0.0f;
  float gx = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
    const Floats<kWidth> weight = load<T, kWidth>(op.weight, 0, col);
    const Floats<kWidth> dy = load<T, kWidth>(op.dy, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      xx += x.at[i] * x.at[i];
      gx += dy.at[i] * (op.offset + weight.at[i]) * x.at[i];
    }
  }
  const double mean_xx = block_reduce<kThreads>(static_cast<double>(xx), parts, Plus()) / cols;
  const double mean_gx = block_reduce<kThreads>(static_cast<double>(gx), parts, Plus()) / cols;
  const double r = reciprocal_root(mean_xx, op.epsilon);
  combine_row<T, kWidth>(op, row, op.offset, static_cast<float>(r),
                         static_cast<float>(-r * r * r * mean_gx), 0.0f);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) layer_norm_backward_kernel(LayerNormBackward op) {
  double* const parts = shared_memory<double[kWarps]>();
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.x.cols);
  double sum = 0.0;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += static_cast<double>(x.at[i]);
  }
  const double mean = block_reduce<kThreads>(sum, parts, Plus()) / cols;
  const float shift = static_cast<float>(mean);
  float squares = 0.0f;
  float g_sum = 0.0f;
  float gx = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
    const Floats<kWidth> weight = load<T, kWidth>(op.weight, 0, col);
    const Floats<kWidth> dy = load<T, kWidth>(op.dy, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float g = dy.at[i] * weight.at[i];
      squares += (x.at[i] - shift) * (x.at[i] - shift);
      g_sum += g;
      gx += g * (x.at[i] - shift);
    }
  }
  const double variance =
      block_reduce<kThreads>(static_cast<double>(squares), parts, Plus()) / cols;
  const double mean_g = block_reduce<kThreads>(static_cast<double>(g_sum), parts, Plus()) / cols;
  const double mean_gx = block_reduce<kThreads>(static_cast<double>(gx), parts, Plus()) / cols;
  const double r = reciprocal_root(variance, op.epsilon);
  const double slope = -r * r * r * mean_gx;  // r (g - mean(g) - (x - mean) r² mean(g (x - mean)))
  combine_row<T, kWidth>(op, row, 0.0f, static_cast<float>(r), static_cast<float>(slope),
                         static_cast<float>(-r * mean_g - slope * mean));
}

template <class T, int kWidth>
struct GateBackward {
  GatedProductBackward op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const Floats<kWidth> gate = load<T, kWidth>(op.gate, row, col);
    const Floats<kWidth> up = load<T, kWidth>(op.up, row, col);
    const Floats<kWidth> dy = load<T, kWidth>(op.dy, row, col);
    Floats<kWidth> d_gate;
    Floats<kWidth> d_up;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float g = gate.at[i];
      const float s = 1.0f / (1.0f + expf(-exponent_of(op.function, g)));
      const float slope = op.function == GateFunction::kSilu
                              ? 1.0f + g * (1.0f - s)
                              : 1.0f + g * (1.0f - s) * gelu_exponent_slope(g);
      d_gate.at[i] = dy.at[i] * up.at[i] * s * slope;
      d_up.at[i] = dy.at[i] * g * s;
    }
    store<T, kWidth>(d_gate, op.d_gate, row, col);
    store<T, kWidth>(d_up, op.d_up, row, col);
  }
};

template <class T, int kWidth>
struct PassWherePositive {
  ReluBackward op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const Floats<kWidth> y = load<T, kWidth>(op.y, row, col);
    Floats<kWidth> dx = load<T, kWidth>(op.dy, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) dx.at[i] = y.at[i] > 0.0f ? dx.at[i] : 0.0f;
    store<T, kWidth>(dx, op.dx, row, col);
  }
};

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) squared_error_kernel(SquaredError op, double* of_row) {
  double* const parts = shared_memory<double[kWarps]>();
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.y.cols);
  float sum = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    Floats<kWidth> y = load<T, kWidth>(op.y, row, col);
    const Floats<kWidth> target = load<T, kWidth>(op.target, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float difference = y.at[i] - target.at[i];
      sum += difference * difference;
      y.at[i] = op.scale * difference;
    }
    store<T, kWidth>(y, op.dy, row, col);
  }
  const double total = block_reduce<kThreads>(static_cast<double>(sum), parts, Plus());
  if (threadIdx.x == 0) of_row[row] = total;
}

template <int kWidth>
struct SumAndSquares {
  AddGradient op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const Floats<kWidth> gradient = load<float, kWidth>(op.gradient, row, col);
    if (op.sum.data) {
      Floats<kWidth> sum = load<float, kWidth>(op.sum, row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum.at[i] += gradient.at[i];
      store<float, kWidth>(sum, op.sum, row, col);
    }
    if (op.squares.data) {
      Floats<kWidth> squares = load<float, kWidth>(op.squares, row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) squares.at[i] += gradient.at[i] * gradient.at[i];
      store<float, kWidth>(squares, op.squares, row, col);
    }
  }
};

}  // namespace

void CudaBackend::run(const RmsNormBackward& op) {
  check_columns(op.x.cols);
  const bool packed = can_pack(op.x) && can_pack(op.weight) && can_pack(op.dy) && can_pack(op.dx);
  with_activation_type(op.x.type, [&](auto type) {
    with_width(packed, [&](auto width) {
      launch(rms_norm_backward_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.x.rows),
              .threads = kThreads,
              .shared_bytes = sizeof(double[kWarps]),
              .stream = device_->stream()},
             op);
    });
  });
}

void CudaBackend::run(const LayerNormBackward& op) {
  check_columns(op.x.cols);
  const bool packed = can_pack(op.x) && can_pack(op.weight) && can_pack(op.dy) && can_pack(op.dx);
  with_activation_type(op.x.type, [&](auto type) {
    with_width(packed, [&](auto width) {
      launch(layer_norm_backward_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.x.rows),
              .threads = kThreads,
              .shared_bytes = sizeof(double[kWarps]),
              .stream = device_->stream()},
             op);
    });
  });
}

void CudaBackend::run(const GatedProductBackward& op) {
  const bool packed = can_pack(op.gate) && can_pack(op.up) && can_pack(op.dy) &&
                      can_pack(op.d_gate) && can_pack(op.d_up);
  with_activation_type(op.gate.type, [&](auto type) {
    with_width(packed, [&](auto width) {
      for_each_element(op.gate.rows, op.gate.cols, width, device_->stream(),
                       GateBackward<typename decltype(type)::type, width()>{op});
    });
  });
}

void CudaBackend::run(const ReluBackward& op) {
  with_activation_type(op.y.type, [&](auto type) {
    with_width(can_pack(op.y) && can_pack(op.dy) && can_pack(op.dx), [&](auto width) {
      for_each_element(op.y.rows, op.y.cols, width, device_->stream(),
                       PassWherePositive<typename decltype(type)::type, width()>{op});
    });
  });
}

double CudaBackend::run(const SquaredError& op) {
  check_columns(op.y.cols);
  std::vector<double> of_row(static_cast<std::size_t>(op.y.rows));
  const Buffer device_of_row = allocate(of_row.size() * sizeof(double));
  with_activation_type(op.y.type, [&](auto type) {
    with_width(can_pack(op.y) && can_pack(op.target) && can_pack(op.dy), [&](auto width) {
      launch(squared_error_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.y.rows),
              .threads = kThreads,
              .shared_bytes = sizeof(double[kWarps]),
              .stream = device_->stream()},
             op, reinterpret_cast<double*>(device_of_row.get()));
    });
  });
  download(device_of_row.get(), std::as_writable_bytes(std::span(of_row)));
  double sum = 0.0;
  for (const double row : of_row) sum += row;
  return sum;
}

void CudaBackend::run(const AddGradient& op) {
  const auto packs = [](const Matrix& to) { return to.data == nullptr || can_pack(to); };
  with_width(can_pack(op.gradient) && packs(op.sum) && packs(op.squares), [&](auto width) {
    for_each_element(op.gradient.rows, op.gradient.cols, width, device_->stream(),
                     SumAndSquares<width()>{op});
  });
}

}  // namespace roundhouse
