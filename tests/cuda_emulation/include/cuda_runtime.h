// Stands in for CUDA's header of this name: see ../README.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>

#include "tests/cuda_emulation/grid.h"

#define __host__
#define __device__
#define __global__
#define __shared__  // only `extern __shared__`: a variable of a kernel would be each thread's own
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __forceinline__ inline

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

// --- device code ---

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  emulation::wait_for_block(where);
}

namespace emulation {
void check_all_lanes(unsigned mask, std::source_location where);
template <class T>
struct Shuffle {
  T value;
  unsigned from;
  T result;
};
template <class T>
T shuffle(const char* name, T value, unsigned from, std::source_location where) {
  Shuffle<T> mine{value, from, {}};
  wait_for_warp(name, where, &mine, [](std::span<void* const, kWarp> lanes) {
    for (void* lane : lanes) {
      auto& to = *static_cast<Shuffle<T>*>(lane);
      to.result = static_cast<Shuffle<T>*>(lanes[to.from % kWarp])->value;
    }
  });
  return mine.result;
}
}  // namespace emulation

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       std::source_location where = std::source_location::current()) {
  emulation::check_all_lanes(mask, where);
  emulation::wait_for_warp("__syncwarp", where, nullptr, [](auto) {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from,
              std::source_location where = std::source_location::current()) {
  emulation::check_all_lanes(mask, where);
  return emulation::shuffle("__shfl_sync", value, static_cast<unsigned>(from), where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance,
                  std::source_location where = std::source_location::current()) {
  emulation::check_all_lanes(mask, where);
  return emulation::shuffle("__shfl_xor_sync", value,
                            emulation::lane() ^ static_cast<unsigned>(distance), where);
}

// Threads never run at the same time.
template <class T>
T atomicMin(T* at, T value) {
  const T before = *at;
  if (value < before) *at = value;
  return before;
}

template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}

inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }

inline void __trap(std::source_location where = std::source_location::current()) {
  emulation::fail("a trap", where);
}

// --- host code ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
};
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);  // of a launch failure: what the emulation found
cudaError_t cudaGetLastError();

struct cudaUUID_t {
  char bytes[16];
};
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  int major, minor;
  std::size_t totalGlobalMem;
};
enum cudaDeviceAttr { cudaDevAttrMemoryPoolsSupported };
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaSetDevice(int device);

namespace emulation {
struct Stream;
struct Event;
struct Pool;
}  // namespace emulation
using cudaStream_t = emulation::Stream*;
using cudaEvent_t = emulation::Event*;
using cudaMemPool_t = emulation::Pool*;
constexpr unsigned cudaStreamNonBlocking = 1;
constexpr unsigned cudaEventDisableTiming = 2;
constexpr unsigned cudaHostAllocDefault = 0;
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

enum cudaMemAllocationType { cudaMemAllocationTypePinned };
enum cudaMemLocationType { cudaMemLocationTypeDevice };
struct cudaMemLocation {
  cudaMemLocationType type;
  int id;
};
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  cudaMemLocation location;
};
enum cudaMemPoolAttr {
  cudaMemPoolAttrReleaseThreshold,
  cudaMemPoolAttrReservedMemCurrent,
  cudaMemPoolAttrUsedMemCurrent,
  cudaMemPoolAttrUsedMemHigh
};
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties);
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value);
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t keep);
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream);
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
constexpr unsigned cudaHostRegisterDefault = 0;
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* memory);

enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width,
                              std::size_t height, cudaStream_t stream);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulation {
// Host memory that was pinned by cudaHostRegister().
struct Pinning {
  int pins = 0;  // calls that did
  int unpins = 0;
  std::size_t bytes = 0;  // now
  std::size_t most_bytes = 0;
};
std::string current_gpu();  // the name of the one that this process has set
const Pinning& pinning();

// Queues work; what it reads from the host it must hold itself. It returns what went wrong.
void queue(cudaStream_t stream, std::function<std::string()> work);
// Wholly inside one allocation: as work of a stream finds it, and as the host sees it, which is ahead of the streams.
bool on_device(const void* memory, std::size_t bytes);
bool is_allocated(const void* memory, std::size_t bytes);
cudaError_t begin_call(
    const char* call);  // what every call begins with: fails if the device is broken
cudaError_t check_launch(const void* kernel, const cudaLaunchConfig_t& config,
                         std::size_t parameter_bytes);
}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernels take plain data");
  const cudaError_t status = emulation::check_launch(reinterpret_cast<const void*>(kernel), *config,
                                                     (0 + ... + sizeof(Parameters)));
  if (status != cudaSuccess) return status;
  const cudaLaunchConfig_t c = *config;
  emulation::queue(c.stream, [c, kernel, copies = std::tuple<Parameters...>(arguments...)] {
    return emulation::run_grid({c.gridDim.x, c.gridDim.y, c.gridDim.z},
                               {c.blockDim.x, c.blockDim.y, c.blockDim.z}, c.dynamicSmemBytes,
                               [&] { std::apply(kernel, copies); });
  });
  return cudaSuccess;
}
