#include <vector>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"

namespace roundhouse {
namespace {

// The lower triangle of a row-major matrix is the upper one of the same memory in cuSOLVER's column-major view.
constexpr cublasFillMode_t kLowerOfRows = CUBLAS_FILL_MODE_UPPER;

struct ClearUpper {
  Matrix m;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    if (col > row) static_cast<float*>(m.data)[row * m.stride + col] = 0.0f;
  }
};

void clear_upper(CudaDevice& device, const Matrix& m) {
  for_each_element(m.rows, m.cols, 1, device.stream(), ClearUpper{m});
}

// What a routine of cuSOLVER works in, and the place for its report.
struct Workspace {
  Workspace(Memory& memory, std::size_t device_bytes, std::size_t host_bytes)
      : bytes(device_bytes),
        device(memory.allocate(device_bytes)),
        host(host_bytes),
        info(memory.allocate(sizeof(int))) {}
  std::size_t bytes;
  Buffer device;
  std::vector<std::byte> host;
  Buffer info;
};

}  // namespace

bool CudaBackend::run(const Cholesky& op) {
  const std::int64_t n = op.a.rows;
  std::size_t device_bytes = 0;
  std::size_t host_bytes = 0;
  check(cusolverDnXpotrf_bufferSize(device_->solver(), device_->solver_params(), kLowerOfRows, n,
                                    CUDA_R_32F, op.a.data, op.a.stride, CUDA_R_32F, &device_bytes,
                                    &host_bytes),
        "cusolverDnXpotrf_bufferSize");
  Workspace work(*this, device_bytes, host_bytes);
  check(cusolverDnXpotrf(device_->solver(), device_->solver_params(), kLowerOfRows, n, CUDA_R_32F,
                         op.a.data, op.a.stride, CUDA_R_32F, work.device.get(), device_bytes,
                         work.host.data(), host_bytes, reinterpret_cast<int*>(work.info.get())),
        "cusolverDnXpotrf");
  clear_upper(*device_, op.a);
  const int info = device_->download<int>(work.info.get());
  require(info >= 0, "cholesky: cuSOLVER refuses an argument");
  if (info > 0) return false;
  // A comparison with NaN is false: a pivot of NaN may pass for a positive one.
  std::uint8_t finite = 0;
  check_finite({.x = op.a, .rows_each = n, .finite = std::span(&finite, 1)});
  return finite != 0;
}

void CudaBackend::run(const TriangularInverse& op) {
  const std::int64_t n = op.l.rows;
  std::size_t device_bytes = 0;
  std::size_t host_bytes = 0;
  check(cusolverDnXtrtri_bufferSize(device_->solver(), kLowerOfRows, CUBLAS_DIAG_NON_UNIT, n,
                                    CUDA_R_32F, op.l.data, op.l.stride, &device_bytes, &host_bytes),
        "cusolverDnXtrtri_bufferSize");
  Workspace work(*this, device_bytes, host_bytes);
  check(cusolverDnXtrtri(device_->solver(), kLowerOfRows, CUBLAS_DIAG_NON_UNIT, n, CUDA_R_32F,
                         op.l.data, op.l.stride, work.device.get(), device_bytes, work.host.data(),
                         host_bytes, reinterpret_cast<int*>(work.info.get())),
        "cusolverDnXtrtri");
  clear_upper(*device_, op.l);
  require(device_->download<int>(work.info.get()) == 0,
          "triangular_inverse: the diagonal holds a zero");
}

}  // namespace roundhouse
