#include <iomanip>
#include <sstream>
#include <string>

#include "base/error.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"

namespace roundhouse {
namespace {

constexpr int kLeastMajor = 8;  // mma of BF16 and asynchronous copies to shared memory
// What NVIDIA's manual advises for Hopper. cuBLAS must not choose its own: kernels, and so bits, depend on the size.
constexpr std::size_t kBlasWorkspace = std::size_t{32} << 20;

[[noreturn]] void fail(const char* call, const std::string& why,
                       const std::source_location& where) {
  throw Error(std::string(call) + ": " + why + " (" + where.file_name() + ":" +
              std::to_string(where.line()) + ")");
}

const char* words_for(cusolverStatus_t status) {
  switch (status) {
    case CUSOLVER_STATUS_NOT_INITIALIZED:
      return "not initialized";
    case CUSOLVER_STATUS_ALLOC_FAILED:
      return "out of memory";
    case CUSOLVER_STATUS_INVALID_VALUE:
      return "invalid value";
    case CUSOLVER_STATUS_ARCH_MISMATCH:
      return "not for this GPU";
    case CUSOLVER_STATUS_EXECUTION_FAILED:
      return "execution failed";
    case CUSOLVER_STATUS_NOT_SUPPORTED:
      return "not supported";
    default:
      return "internal error";
  }
}

cudaDeviceProp properties_of(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  return properties;
}

// As nvidia-smi -L writes it, without what stands before it there.
std::string text_of(const cudaUUID_t& uuid) {
  std::ostringstream text;
  text << std::hex << std::setfill('0');
  for (std::size_t i = 0; i < sizeof uuid.bytes; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text << '-';
    text << std::setw(2) << static_cast<int>(static_cast<unsigned char>(uuid.bytes[i]));
  }
  return text.str();
}

int checked_index(int index) {
  const auto count = static_cast<int>(visible_cuda_devices().uuids.size());
  if (index < 0 || index >= count) {
    throw Error("there is no GPU " + std::to_string(index) + ": this process sees " +
                std::to_string(count));
  }
  const cudaDeviceProp properties = properties_of(index);
  if (properties.major < kLeastMajor) {
    throw Error(std::string("GPU ") + std::to_string(index) + " (" + properties.name +
                ") has compute capability " + std::to_string(properties.major) + "." +
                std::to_string(properties.minor) + "; 8.0 is needed");
  }
  check(cudaSetDevice(index), "cudaSetDevice");
  return index;
}

template <class Handle, auto Destroy, class Create>
Unique<Handle, Destroy> created(const Create& create, const char* call) {
  Handle handle;
  check(create(&handle), call);
  return Unique<Handle, Destroy>(handle);
}

}  // namespace

void check(cudaError_t status, const char* call, std::source_location where) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // else the next check would find it again
  fail(call, std::string(cudaGetErrorName(status)) + ", " + cudaGetErrorString(status), where);
}

void check(cublasStatus_t status, const char* call, std::source_location where) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(call, std::string(cublasGetStatusName(status)) + ", " + cublasGetStatusString(status),
       where);
}

void check(cusolverStatus_t status, const char* call, std::source_location where) {
  if (status == CUSOLVER_STATUS_SUCCESS) return;
  fail(call, "status " + std::to_string(static_cast<int>(status)) + ", " + words_for(status),
       where);
}

CudaDevice::CudaDevice(int index)
    : index_(checked_index(index)),
      pool_(std::make_shared<CudaPool>(index)),
      staging_(pool_->stream()),
      side_copies_(pool_),
      blas_(created<cublasHandle_t, &cublasDestroy>([](auto* h) { return cublasCreate(h); },
                                                    "cublasCreate")),
      blas_workspace_(pool_->allocate(kBlasWorkspace)),
      solver_(created<cusolverDnHandle_t, &cusolverDnDestroy>(
          [](auto* h) { return cusolverDnCreate(h); }, "cusolverDnCreate")),
      solver_params_(created<cusolverDnParams_t, &cusolverDnDestroyParams>(
          [](auto* p) { return cusolverDnCreateParams(p); }, "cusolverDnCreateParams")) {
  check(cublasSetStream(blas_.get(), pool_->stream()), "cublasSetStream");
  check(cublasSetWorkspace(blas_.get(), blas_workspace_.get(), kBlasWorkspace),
        "cublasSetWorkspace");
  // F32 stays F32 (no TF32), and partial sums of 16-bit products are not rounded to 16 bits on their way.
  check(cublasSetMathMode(blas_.get(), static_cast<cublasMath_t>(
                                           CUBLAS_DEFAULT_MATH |
                                           CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)),
        "cublasSetMathMode");
  check(cublasSetAtomicsMode(blas_.get(), CUBLAS_ATOMICS_NOT_ALLOWED), "cublasSetAtomicsMode");
  check(cusolverDnSetStream(solver_.get(), pool_->stream()), "cusolverDnSetStream");
  check(cusolverDnSetDeterministicMode(solver_.get(), CUSOLVER_DETERMINISTIC_RESULTS),
        "cusolverDnSetDeterministicMode");
}

cudaStream_t CudaDevice::stream() const {
  check(cudaSetDevice(index_), "cudaSetDevice");
  return pool_->stream();
}

cublasHandle_t CudaDevice::blas() const {
  (void)stream();
  return blas_.get();
}

cusolverDnHandle_t CudaDevice::solver() const {
  (void)stream();
  return solver_.get();
}

void CudaDevice::sync() {
  check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  staging_.forget();
}

CudaBackend::CudaBackend(const BackendOptions& options)
    : device_(std::make_unique<CudaDevice>(options.device)),
      sharers_(static_cast<std::size_t>(options.sharers)) {}

CudaBackend::~CudaBackend() = default;

std::string CudaBackend::description() const {
  const cudaDeviceProp properties = properties_of(device_->index());
  std::ostringstream text;
  text << "GPU " << device_->index() << ", " << properties.name << ", " << std::fixed
       << std::setprecision(1) << static_cast<double>(properties.totalGlobalMem) / (1 << 30)
       << " GiB, compute capability " << properties.major << "." << properties.minor;
  if (sharers_ > 1) text << ", shared by " << sharers_ << " ranks";
  return text.str();
}

std::string CudaBackend::computes_as() const {
  const cudaDeviceProp properties = properties_of(device_->index());
  int runtime = 0, blas = 0, solver = 0;
  check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  check(cublasGetVersion(device_->blas(), &blas), "cublasGetVersion");
  check(cusolverGetVersion(&solver), "cusolverGetVersion");
  return std::string("GPU ") + properties.name + ", compute capability " +
         std::to_string(properties.major) + "." + std::to_string(properties.minor) + ", CUDA " +
         std::to_string(runtime) + ", cuBLAS " + std::to_string(blas) + ", cuSOLVER " +
         std::to_string(solver);
}

VisibleGpus visible_cuda_devices() {
  VisibleGpus gpus;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {  // no driver is no device
    (void)cudaGetLastError();
    gpus.why_none = cudaGetErrorString(status);
    return gpus;
  }
  for (int i = 0; i < count; ++i) gpus.uuids.push_back(text_of(properties_of(i).uuid));
  if (count == 0) gpus.why_none = "CUDA finds none";
  return gpus;
}

std::unique_ptr<Backend> make_cuda_backend(const BackendOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace roundhouse
