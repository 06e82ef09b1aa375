// What the kernels of CudaBackend share: the stream and the handles of the libraries.
#pragma once

#include "kernels/cuda/check.cuh"
#include "kernels/cuda/memory.cuh"

namespace roundhouse {

class CudaDevice {
 public:
  explicit CudaDevice(int index);

  // Makes the device current for the calling thread.
  cudaStream_t stream() const;
  cublasHandle_t blas() const;
  cusolverDnHandle_t solver() const;
  cusolverDnParams_t solver_params() const { return solver_params_.get(); }
  CudaPool& pool() { return *pool_; }
  CudaStaging& staging() { return staging_; }
  CudaSideCopies& side_copies() { return side_copies_; }
  int index() const { return index_; }

  void sync();
  // A few bytes that the host decides on: waits for all that is queued.
  template <class T>
  T download(const void* from) {
    T value;
    staging_.download(from, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }

 private:
  int index_;
  std::shared_ptr<CudaPool> pool_;
  CudaStaging staging_;
  CudaSideCopies side_copies_;
  Unique<cublasHandle_t, &cublasDestroy> blas_;
  Buffer blas_workspace_;
  Unique<cusolverDnHandle_t, &cusolverDnDestroy> solver_;
  Unique<cusolverDnParams_t, &cusolverDnDestroyParams> solver_params_;
};

}  // namespace roundhouse
