#include <algorithm>
#include <cfloat>

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

// One block a row; the row is read twice, the second time from cache.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNorm op) {
  float* const parts = shared_memory<float[kWarps]>();
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.x.cols);
  float squares = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += x.at[i] * x.at[i];
  }
  const float mean = block_reduce<kThreads>(squares, parts, Plus()) / static_cast<float>(cols);
  // Multiplied, not divided: a row of zeros gives zeros even with an epsilon of 0.
  const float factor = mean + op.epsilon > 0.0f ? 1.0f / sqrtf(mean + op.epsilon) : mean;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
    const Floats<kWidth> weight = load<T, kWidth>(op.weight, 0, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x.at[i] = x.at[i] * factor * (op.offset + weight.at[i]);
    store<T, kWidth>(x, op.y, row, col);
  }
}

struct LayerNormParts {
  double mean[kWarps];
  float squares[kWarps];
};

// The mean in double: the error of a float sum of values far from 0 would be as large as their spread.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) layer_norm_kernel(LayerNorm op) {
  LayerNormParts& parts = shared_memory<LayerNormParts>();
  const std::int64_t row = blockIdx.x;
  const int cols = static_cast<int>(op.x.cols);
  double sum = 0.0;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += static_cast<double>(x.at[i]);
  }
  const float mean = static_cast<float>(block_reduce<kThreads>(sum, parts.mean, Plus()) / cols);
  float squares = 0.0f;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    const Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += (x.at[i] - mean) * (x.at[i] - mean);
  }
  const float variance =
      block_reduce<kThreads>(squares, parts.squares, Plus()) / static_cast<float>(cols);
  const float factor =
      variance + op.epsilon > 0.0f ? 1.0f / sqrtf(variance + op.epsilon) : variance;
  for (int col = static_cast<int>(threadIdx.x) * kWidth; col < cols; col += kThreads * kWidth) {
    Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
    const Floats<kWidth> weight = load<T, kWidth>(op.weight, 0, col);
    const Floats<kWidth> bias = load<T, kWidth>(op.bias, 0, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      x.at[i] = (x.at[i] - mean) * factor * weight.at[i] + bias.at[i];
    }
    store<T, kWidth>(x, op.y, row, col);
  }
}

// `col` counts the pairs of a row: so many of each head as are rotated.
template <class T, int kWidth>
struct Rotate {
  Rope op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const int half = static_cast<int>(op.cos.cols);
    const int head = static_cast<int>(col) / half;
    const int i = static_cast<int>(col) % half;
    const std::int64_t first = static_cast<std::int64_t>(head) * op.head_dim + i;
    const std::int64_t position = row % op.length;
    Floats<kWidth> a = load<T, kWidth>(op.x, row, first);
    Floats<kWidth> b = load<T, kWidth>(op.x, row, first + half);
    const Floats<kWidth> cos = load<float, kWidth>(op.cos, position, i);
    const Floats<kWidth> sin = load<float, kWidth>(op.sin, position, i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const float before = a.at[j];
      const float turn = op.backward ? -sin.at[j] : sin.at[j];
      a.at[j] = before * cos.at[j] - b.at[j] * turn;
      b.at[j] = b.at[j] * cos.at[j] + before * turn;
    }
    store<T, kWidth>(a, op.x, row, first);
    store<T, kWidth>(b, op.x, row, first + half);
  }
};

template <class T, int kWidth>
struct Gate {
  GatedProduct op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> gate = load<T, kWidth>(op.gate, row, col);
    const Floats<kWidth> up = load<T, kWidth>(op.up, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float a = exponent_of(op.function, gate.at[i]);
      gate.at[i] = gate.at[i] / (1.0f + expf(-a)) * up.at[i];
    }
    store<T, kWidth>(gate, op.y, row, col);
  }
};

template <class T, int kWidth>
struct AddScaled {
  ScaledSum op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x.at[i] = op.scale * x.at[i];
    if (op.accumulate) {
      const Floats<kWidth> y = load<T, kWidth>(op.y, row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) x.at[i] = y.at[i] + x.at[i];
    }
    store<T, kWidth>(x, op.y, row, col);
  }
};

template <int kWidth>
struct CapSoftly {
  SoftCap op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> x = load<float, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x.at[i] = op.cap * tanhf(x.at[i] / op.cap);
    store<float, kWidth>(x, op.y, row, col);
  }
};

template <class T, int kWidth>
struct CutBelowZero {
  Relu op;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> x = load<T, kWidth>(op.x, row, col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x.at[i] = x.at[i] < 0.0f ? 0.0f : x.at[i];
    store<T, kWidth>(x, op.y, row, col);
  }
};

// Blocks (s, y) share the rows of sample s. Whoever finds a value that is not finite says so: all write the same.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    check_finite_kernel(ConstMatrix x, std::int64_t rows_each, std::uint8_t* finite) {
  const std::int64_t sample = blockIdx.x;
  bool good = true;
  for (std::int64_t row = blockIdx.y; row < rows_each; row += gridDim.y) {
    for (std::int64_t col = static_cast<std::int64_t>(threadIdx.x) * kWidth; col < x.cols;
         col += kThreads * kWidth) {
      const Floats<kWidth> values = load<T, kWidth>(x, sample * rows_each + row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) good = good && fabsf(values.at[i]) <= FLT_MAX;
    }
  }
  if (!good) finite[sample] = 0;
}

}  // namespace

void CudaBackend::run(const RmsNorm& op) {
  const std::int64_t cols = op.x.cols;
  check_columns(cols);
  with_activation_type(op.x.type, [&](auto type) {
    with_width(can_pack(op.x) && can_pack(op.weight) && can_pack(op.y), [&](auto width) {
      launch(rms_norm_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.x.rows),
              .threads = kThreads,
              .shared_bytes = sizeof(float[kWarps]),
              .stream = device_->stream()},
             op);
    });
  });
}

void CudaBackend::run(const LayerNorm& op) {
  const std::int64_t cols = op.x.cols;
  check_columns(cols);
  with_activation_type(op.x.type, [&](auto type) {
    const bool packed =
        can_pack(op.x) && can_pack(op.weight) && can_pack(op.bias) && can_pack(op.y);
    with_width(packed, [&](auto width) {
      launch(layer_norm_kernel<typename decltype(type)::type, width()>,
             {.grid = blocks_for(op.x.rows),
              .threads = kThreads,
              .shared_bytes = sizeof(LayerNormParts),
              .stream = device_->stream()},
             op);
    });
  });
}

void CudaBackend::run(const Rope& op) {
  check_columns(op.x.cols);
  const std::int64_t half = op.cos.cols;
  with_activation_type(op.x.type, [&](auto type) {
    const bool packed = half % kPackWidth == 0 && op.head_dim % kPackWidth == 0 && can_pack(op.x) &&
                        can_pack(op.cos) && can_pack(op.sin);
    with_width(packed, [&](auto width) {
      for_each_element(op.x.rows, op.heads * half, width, device_->stream(),
                       Rotate<typename decltype(type)::type, width()>{op});
    });
  });
}

void CudaBackend::run(const GatedProduct& op) {
  const std::int64_t cols = op.gate.cols;
  with_activation_type(op.gate.type, [&](auto type) {
    with_width(can_pack(op.gate) && can_pack(op.up) && can_pack(op.y), [&](auto width) {
      for_each_element(op.gate.rows, cols, width, device_->stream(),
                       Gate<typename decltype(type)::type, width()>{op});
    });
  });
}

void CudaBackend::run(const ScaledSum& op) {
  with_activation_type(op.x.type, [&](auto type) {
    with_width(can_pack(op.x) && can_pack(op.y), [&](auto width) {
      for_each_element(op.x.rows, op.x.cols, width, device_->stream(),
                       AddScaled<typename decltype(type)::type, width()>{op});
    });
  });
}

void CudaBackend::run(const SoftCap& op) {
  with_width(can_pack(op.x) && can_pack(op.y), [&](auto width) {
    for_each_element(op.x.rows, op.x.cols, width, device_->stream(), CapSoftly<width()>{op});
  });
}

void CudaBackend::run(const Relu& op) {
  with_activation_type(op.x.type, [&](auto type) {
    with_width(can_pack(op.x) && can_pack(op.y), [&](auto width) {
      for_each_element(op.x.rows, op.x.cols, width, device_->stream(),
                       CutBelowZero<typename decltype(type)::type, width()>{op});
    });
  });
}

void CudaBackend::run(const CheckFinite& op) {
  const std::int64_t samples = std::ssize(op.finite);
  const Buffer finite = allocate(op.finite.size_bytes());
  check(cudaMemsetAsync(finite.get(), 1, op.finite.size_bytes(), device_->stream()),
        "cudaMemsetAsync");
  constexpr std::int64_t kMostRowBlocks = 1024;
  with_float_type(op.x.type, [&](auto type) {
    with_width(can_pack(op.x), [&](auto width) {
      launch(check_finite_kernel<typename decltype(type)::type, width()>,
             {.grid = dim3(blocks_for(samples), blocks_for(std::min(op.rows_each, kMostRowBlocks))),
              .threads = kThreads,
              .stream = device_->stream()},
             op.x, op.rows_each, reinterpret_cast<std::uint8_t*>(finite.get()));
    });
  });
  download(finite.get(), std::as_writable_bytes(op.finite));
}

}  // namespace roundhouse
