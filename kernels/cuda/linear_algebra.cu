#include <algorithm>

#include "base/error.h"
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"

namespace roundhouse {
namespace {

// Columns of h that one product of Gram adds; its diagonal block is computed aside (16 MiB).
constexpr std::int64_t kGramTile = 2048;
constexpr int kTransposeEdge = 32;  // of the blocks that symmetrize() turns
constexpr int kTransposeRows = 8;   // of such a block that its threads move at a time

cudaDataType data_type_of(DType type) {
  require(type == DType::kF32 || type == DType::kBF16 || type == DType::kF16,
          "a factor of a product is no float");
  return type == DType::kF32 ? CUDA_R_32F : type == DType::kBF16 ? CUDA_R_16BF : CUDA_R_16F;
}

template <class T, int kWidth>
struct Scale {
  Matrix m;
  float factor;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> values = load<T, kWidth>(m, row, col);
    for (float& value : values.at) value *= factor;
    store<T, kWidth>(values, m, row, col);
  }
};

// y = bias (+ y): what a product is then added to, so that it is rounded once.
template <class B, class Y, int kWidth>
struct StartWithBias {
  ConstMatrix bias;
  Matrix y;
  bool accumulate;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> values = load<B, kWidth>(bias, 0, col);
    if (accumulate) {
      const Floats<kWidth> before = load<Y, kWidth>(y, row, col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values.at[i] += before.at[i];
    }
    store<Y, kWidth>(values, y, row, col);
  }
};

template <int kWidth>
struct AddElements {
  AddUp op;
  __device__ static void add(Floats<kWidth>& values, const Floats<kWidth>& more) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values.at[i] += more.at[i];
  }
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    Floats<kWidth> sum = load<float, kWidth>(op.from[0], row, col);
    if (op.count > 1) add(sum, load<float, kWidth>(op.from[1], row, col));
    if (op.count > 2) {
      Floats<kWidth> second = load<float, kWidth>(op.from[2], row, col);
      if (op.count > 3) add(second, load<float, kWidth>(op.from[3], row, col));
      add(sum, second);
    }
    if (op.accumulate) {
      Floats<kWidth> before = load<float, kWidth>(op.into, row, col);
      add(before, sum);
      sum = before;
    }
    store<float, kWidth>(sum, op.into, row, col);
  }
};

struct AddLower {
  ConstMatrix from;
  Matrix into;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    if (col > row) return;
    static_cast<float*>(into.data)[row * into.stride + col] +=
        static_cast<const float*>(from.data)[row * from.stride + col];
  }
};

struct Reverse {
  ConstMatrix from;
  Matrix to;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    static_cast<float*>(to.data)[row * to.stride + col] = static_cast<const float*>(
        from.data)[(from.rows - 1 - row) * from.stride + (from.cols - 1 - col)];
  }
};

// An index may be null: 0, 1, 2, ...
template <class T>
struct GatherElement {
  ConstMatrix from;
  const std::int32_t* rows;
  const std::int32_t* cols;
  Matrix to;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    const std::int64_t r = rows == nullptr ? row : rows[row];
    const std::int64_t c = cols == nullptr ? col : cols[col];
    if (r < -1 || r >= from.rows || c < -1 || c >= from.cols)
      __trap();  // found when the host next waits
    static_cast<T*>(to.data)[row * to.stride + col] =
        r < 0 || c < 0 ? T{0} : static_cast<const T*>(from.data)[r * from.stride + c];
  }
};

// What Gather reads places from.
const std::int32_t* places(const ConstMatrix& index) {
  return index.cols == 0 ? nullptr : static_cast<const std::int32_t*>(index.data);
}

struct TransposeBlock {
  float at[kTransposeEdge]
          [kTransposeEdge + 1];  // a column apart: columns are read without conflicts
};

// Block (x, y) mirrors the block in row y and column x of blocks, if it is on or below the diagonal.
__global__ void __launch_bounds__(kTransposeEdge* kTransposeRows) symmetrize_kernel(Matrix h) {
  if (blockIdx.x > blockIdx.y) return;
  TransposeBlock& block = shared_memory<TransposeBlock>();
  float* const data = static_cast<float*>(h.data);
  const std::int64_t row_begin = static_cast<std::int64_t>(blockIdx.y) * kTransposeEdge;
  const std::int64_t col_begin = static_cast<std::int64_t>(blockIdx.x) * kTransposeEdge;
  const int x = static_cast<int>(threadIdx.x) % kTransposeEdge;
  for (int y = static_cast<int>(threadIdx.x) / kTransposeEdge; y < kTransposeEdge;
       y += kTransposeRows) {
    const std::int64_t row = row_begin + y;
    const std::int64_t col = col_begin + x;
    if (row < h.rows && col < h.cols) block.at[y][x] = data[row * h.stride + col];
  }
  __syncthreads();
  for (int y = static_cast<int>(threadIdx.x) / kTransposeEdge; y < kTransposeEdge;
       y += kTransposeRows) {
    const std::int64_t row = col_begin + y;  // of the mirrored element, block.at[x][y]
    const std::int64_t col = row_begin + x;
    if (row < col && col < h.cols) data[row * h.stride + col] = block.at[x][y];
  }
}

// A row-major matrix is its transpose in cuBLAS's column-major view: cᵀ = op(b)ᵀ op(a)ᵀ.
void multiply(CudaDevice& device, const Matmul& op) {
  const std::int64_t m = op.c.rows;
  const std::int64_t n = op.c.cols;
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  if (m == 0 || n == 0) return;
  const auto leading = [](const ConstMatrix& x) { return std::max<std::int64_t>(x.stride, 1); };
  check(cublasGemmEx_64(device.blas(), op.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                        op.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, n, m, k, &op.alpha, op.b.data,
                        data_type_of(op.b.type), leading(op.b), op.a.data, data_type_of(op.a.type),
                        leading(op.a), &op.beta, op.c.data, data_type_of(op.c.type), leading(op.c),
                        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx");
}

void multiply_by(CudaDevice& device, const Matrix& m, float factor) {
  with_activation_type(m.type, [&](auto type) {
    with_width(can_pack(m), [&](auto width) {
      using T = typename decltype(type)::type;
      for_each_element(m.rows, m.cols, width, device.stream(), Scale<T, width()>{m, factor});
    });
  });
}

}  // namespace

void CudaBackend::run(const Matmul& op) {
  const std::int64_t k = op.transpose_a ? op.a.rows : op.a.cols;
  if (k > 0) {
    multiply(*device_, op);
  } else if (op.beta == 0.0f) {
    zero(op.c);
  } else if (op.beta != 1.0f) {
    multiply_by(*device_, op.c, op.beta);  // what remains of a product without terms
  }
}

void CudaBackend::run(const Linear& op) {
  if (op.has_bias()) {
    with_activation_type(op.bias.type, [&](auto bias_type) {
      with_activation_type(op.y.type, [&](auto y_type) {
        with_width(can_pack(op.bias) && can_pack(op.y), [&](auto width) {
          using B = typename decltype(bias_type)::type;
          using Y = typename decltype(y_type)::type;
          for_each_element(op.y.rows, op.y.cols, width, device_->stream(),
                           StartWithBias<B, Y, width()>{op.bias, op.y, op.accumulate});
        });
      });
    });
  }
  matmul({.a = op.x,
          .b = op.w,
          .transpose_b = true,
          .c = op.y,
          .beta = op.has_bias() || op.accumulate ? 1.0f : 0.0f});
}

void CudaBackend::run(const Gram& op) {
  const std::int64_t k = op.x.cols;
  if (op.x.rows == 0) return;
  const std::int64_t edge = std::min(kGramTile, k);
  Tensor aside(*this, DType::kF32, edge, edge);
  for (std::int64_t begin = 0; begin < k; begin += kGramTile) {
    const std::int64_t end = std::min(begin + kGramTile, k);
    const ConstMatrix x = op.x.col_range(begin, end);
    const Matrix diagonal = aside.view().row_range(0, end - begin).col_range(0, end - begin);
    multiply(*device_, {.a = x, .transpose_a = true, .b = x, .c = diagonal});
    for_each_element(end - begin, end - begin, 1, device_->stream(),
                     AddLower{diagonal, op.h.row_range(begin, end).col_range(begin, end)});
    multiply(*device_, {.a = op.x.col_range(end, k),
                        .transpose_a = true,
                        .b = x,
                        .c = op.h.row_range(end, k).col_range(begin, end),
                        .beta = 1.0f});
  }
}

void CudaBackend::run_symmetrize(Matrix h) {
  const unsigned blocks = blocks_for(h.rows, kTransposeEdge);
  launch(symmetrize_kernel,
         {.grid = dim3(blocks, blocks),
          .threads = kTransposeEdge * kTransposeRows,
          .shared_bytes = sizeof(TransposeBlock),
          .stream = device_->stream()},
         h);
}

void CudaBackend::run_reverse(ConstMatrix from, Matrix to) {
  for_each_element(to.rows, to.cols, 1, device_->stream(), Reverse{from, to});
}

void CudaBackend::run(const AddUp& op) {
  bool packed = can_pack(op.into);
  for (int i = 0; i < op.count; ++i) packed = packed && can_pack(op.from[i]);
  with_width(packed, [&](auto width) {
    for_each_element(op.into.rows, op.into.cols, width, device_->stream(),
                     AddElements<width()>{op});
  });
}

void CudaBackend::run_scale(float factor, Matrix m) { multiply_by(*device_, m, factor); }

void CudaBackend::run(const Gather& op) {
  const std::int32_t* const rows = places(op.rows);
  const std::int32_t* const cols = places(op.cols);
  const auto gather_elements = [&]<class T>(TypeTag<T>) {
    for_each_element(op.to.rows, op.to.cols, 1, device_->stream(),
                     GatherElement<T>{op.from, rows, cols, op.to});
  };
  if (op.to.type == DType::kF32) {
    gather_elements(TypeTag<float>());
  } else {
    gather_elements(TypeTag<std::uint8_t>());
  }
}

}  // namespace roundhouse
