// cuBLAS and cuSOLVER: column-major, as plain loops, with the checks of arguments that the real ones make.
#include <cublas_v2.h>
#include <cusolverDn.h>

#include <cmath>
#include <vector>

#include "base/dtype.h"

namespace emulation {

struct Blas {
  cudaStream_t stream = nullptr;
};
struct Solver {
  cudaStream_t stream = nullptr;
};
struct SolverParams {};

namespace {

roundhouse::DType dtype_of(cudaDataType type) {
  return type == CUDA_R_32F    ? roundhouse::DType::kF32
         : type == CUDA_R_16BF ? roundhouse::DType::kBF16
                               : roundhouse::DType::kF16;
}

// A view of column-major memory.
struct Columns {
  std::byte* data;
  roundhouse::DType type;
  std::int64_t ld;

  std::byte* at(std::int64_t row, std::int64_t col) const {
    return data + (col * ld + row) * static_cast<std::int64_t>(size_of(type));
  }
  float get(std::int64_t row, std::int64_t col) const {
    float value;
    roundhouse::convert(type, at(row, col), roundhouse::DType::kF32, &value, 1);
    return value;
  }
  void set(std::int64_t row, std::int64_t col, float value) const {
    roundhouse::convert(roundhouse::DType::kF32, &value, type, at(row, col), 1);
  }
  bool on_device(std::int64_t rows, std::int64_t cols) const {
    if (rows == 0 || cols == 0) return true;
    return emulation::on_device(data,
                                static_cast<std::size_t>((cols - 1) * ld + rows) * size_of(type));
  }
};

// op(x) [rows, cols] as dense rows.
std::vector<float> rows_of(const Columns& x, bool transposed, std::int64_t rows,
                           std::int64_t cols) {
  std::vector<float> dense(static_cast<std::size_t>(rows * cols));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      dense[i * cols + j] = transposed ? x.get(j, i) : x.get(i, j);
    }
  }
  return dense;
}

// The upper triangle of a column-major matrix of floats, by rows and columns of the triangle.
struct Upper {
  float* data;
  std::int64_t ld;
  float& operator()(std::int64_t row, std::int64_t col) const { return data[col * ld + row]; }
};

// a = uᵀ u. As a comparison with NaN is false, so is "not positive" for a pivot of NaN: callers must not count on more.
int factorize(const Upper& a, std::int64_t n) {
  for (std::int64_t col = 0; col < n; ++col) {
    for (std::int64_t row = 0; row <= col; ++row) {
      double sum = static_cast<double>(a(row, col));
      for (std::int64_t k = 0; k < row; ++k) {
        sum -= static_cast<double>(a(k, row)) * static_cast<double>(a(k, col));
      }
      if (row < col) {
        a(row, col) = static_cast<float>(sum / static_cast<double>(a(row, row)));
      } else if (sum <= 0.0) {
        return static_cast<int>(col + 1);
      } else {
        a(col, col) = static_cast<float>(std::sqrt(sum));
      }
    }
  }
  return 0;
}

int invert(const Upper& a, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (a(i, i) == 0.0f) return static_cast<int>(i + 1);
  }
  // Column by column of the inverse, from the right, so that what is still needed is still there.
  for (std::int64_t col = n - 1; col >= 0; --col) {
    std::vector<double> x(static_cast<std::size_t>(col + 1));
    for (std::int64_t row = col; row >= 0; --row) {
      double sum = row == col ? 1.0 : 0.0;
      for (std::int64_t k = row + 1; k <= col; ++k) {
        sum -= static_cast<double>(a(row, k)) * x[k];
      }
      x[row] = sum / static_cast<double>(a(row, row));
    }
    for (std::int64_t row = 0; row <= col; ++row) {
      a(row, col) = static_cast<float>(x[row]);
    }
  }
  return 0;
}

constexpr std::size_t kWorkspace = 1000;  // something, so that callers have to care

bool good(Solver* solver, cublasFillMode_t uplo, std::int64_t n, cudaDataType type,
          std::int64_t lda) {
  return solver != nullptr && solver->stream != nullptr && uplo == CUBLAS_FILL_MODE_UPPER &&
         n > 0 && type == CUDA_R_32F && lda >= n;
}

template <class Routine>
cusolverStatus_t queue_routine(const char* call, Solver* solver, std::int64_t n, void* a,
                               std::int64_t lda, void* device, std::size_t device_bytes, int* info,
                               Routine routine) {
  if (begin_call(call) != cudaSuccess) return CUSOLVER_STATUS_EXECUTION_FAILED;
  if (device_bytes < kWorkspace) return CUSOLVER_STATUS_INVALID_VALUE;
  queue(solver->stream, [=]() -> std::string {
    const Columns columns{static_cast<std::byte*>(a), roundhouse::DType::kF32, lda};
    if (!columns.on_device(n, n) || !on_device(device, device_bytes) ||
        !on_device(info, sizeof(int))) {
      return "a routine of cuSOLVER leaves device memory";
    }
    std::memset(device, 0xff, device_bytes);
    *info = routine(Upper{static_cast<float*>(a), lda}, n);
    return {};
  });
  return CUSOLVER_STATUS_SUCCESS;
}

}  // namespace
}  // namespace emulation

const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
}
const char* cublasGetStatusString(cublasStatus_t) { return "as the emulation has it"; }
cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  *handle = new emulation::Blas;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void* memory, std::size_t bytes) {
  return emulation::is_allocated(memory, bytes) ? CUBLAS_STATUS_SUCCESS
                                                : CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t mode) {
  return mode == CUBLAS_TF32_TENSOR_OP_MATH ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetVersion(cublasHandle_t, int* version) {
  *version = 0;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetAtomicsMode(cublasHandle_t, cublasAtomicsMode_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t op_a,
                               cublasOperation_t op_b, std::int64_t m, std::int64_t n,
                               std::int64_t k, const void* alpha, const void* a,
                               cudaDataType a_type, std::int64_t lda, const void* b,
                               cudaDataType b_type, std::int64_t ldb, const void* beta, void* c,
                               cudaDataType c_type, std::int64_t ldc, cublasComputeType_t compute,
                               cublasGemmAlgo_t) {
  using namespace emulation;
  if (begin_call("cublasGemmEx_64") != cudaSuccess) return CUBLAS_STATUS_EXECUTION_FAILED;
  if (handle == nullptr || handle->stream == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  const bool ta = op_a == CUBLAS_OP_T;
  const bool tb = op_b == CUBLAS_OP_T;
  if (m < 0 || n < 0 || k < 0 || lda < std::max<std::int64_t>(1, ta ? k : m) ||
      ldb < std::max<std::int64_t>(1, tb ? n : k) || ldc < std::max<std::int64_t>(1, m)) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (a_type != b_type || (c_type != a_type && c_type != CUDA_R_32F) ||
      compute != CUBLAS_COMPUTE_32F ||
      k == 0) {  // k == 0: what the real one does is not written down
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  const float by = *static_cast<const float*>(alpha);
  const float keep = *static_cast<const float*>(beta);
  const Columns x{static_cast<std::byte*>(const_cast<void*>(a)), dtype_of(a_type), lda};
  const Columns y{static_cast<std::byte*>(const_cast<void*>(b)), dtype_of(b_type), ldb};
  const Columns z{static_cast<std::byte*>(c), dtype_of(c_type), ldc};
  queue(handle->stream, [=]() -> std::string {
    if (!x.on_device(ta ? k : m, ta ? m : k) || !y.on_device(tb ? n : k, tb ? k : n) ||
        !z.on_device(m, n)) {
      return "a product leaves device memory";
    }
    const std::vector<float> left = rows_of(x, ta, m, k);
    const std::vector<float> right = rows_of(y, tb, k, n);
    std::vector<float> row(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < m; ++i) {
      std::fill(row.begin(), row.end(), 0.0f);
      for (std::int64_t l = 0; l < k; ++l) {
        const float factor = left[i * k + l];
        const float* const from = right.data() + l * n;
        for (std::int64_t j = 0; j < n; ++j) row[j] += factor * from[j];
      }
      for (std::int64_t j = 0; j < n; ++j) {
        const float sum = by * row[j];
        z.set(i, j, keep == 0.0f ? sum : sum + keep * z.get(i, j));
      }
    }
    return {};
  });
  return CUBLAS_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t* handle) {
  *handle = new emulation::Solver;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle) {
  delete handle;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t* params) {
  *params = new emulation::SolverParams;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params) {
  delete params;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverGetVersion(int* version) {
  *version = 0;
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnSetDeterministicMode(cusolverDnHandle_t, cusolverDeterministicMode_t) {
  return CUSOLVER_STATUS_SUCCESS;
}
cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cublasFillMode_t uplo, std::int64_t n,
                                             cudaDataType type, const void*, std::int64_t lda,
                                             cudaDataType compute, std::size_t* device_bytes,
                                             std::size_t* host_bytes) {
  *device_bytes = *host_bytes = emulation::kWorkspace;
  return emulation::good(handle, uplo, n, type, lda) && params != nullptr && compute == CUDA_R_32F
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}
cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                  cublasFillMode_t uplo, std::int64_t n, cudaDataType type, void* a,
                                  std::int64_t lda, cudaDataType, void* device,
                                  std::size_t device_bytes, void* host, std::size_t host_bytes,
                                  int* info) {
  if (!emulation::good(handle, uplo, n, type, lda) || params == nullptr || host == nullptr ||
      host_bytes < emulation::kWorkspace) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return emulation::queue_routine("cusolverDnXpotrf", handle, n, a, lda, device, device_bytes, info,
                                  &emulation::factorize);
}
cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t uplo,
                                             cublasDiagType_t, std::int64_t n, cudaDataType type,
                                             void*, std::int64_t lda, std::size_t* device_bytes,
                                             std::size_t* host_bytes) {
  *device_bytes = *host_bytes = emulation::kWorkspace;
  return emulation::good(handle, uplo, n, type, lda) ? CUSOLVER_STATUS_SUCCESS
                                                     : CUSOLVER_STATUS_INVALID_VALUE;
}
cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t handle, cublasFillMode_t uplo,
                                  cublasDiagType_t, std::int64_t n, cudaDataType type, void* a,
                                  std::int64_t lda, void* device, std::size_t device_bytes,
                                  void* host, std::size_t host_bytes, int* info) {
  if (!emulation::good(handle, uplo, n, type, lda) || host == nullptr ||
      host_bytes < emulation::kWorkspace) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return emulation::queue_routine("cusolverDnXtrtri", handle, n, a, lda, device, device_bytes, info,
                                  &emulation::invert);
}
