// Streams that put off all work until somebody waits, and memory that is full of NaN.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>

namespace emulation {

struct Stream {
  std::deque<std::function<std::string()>> work;
  std::uint64_t done = 0;  // pieces of work, counted from the stream's beginning
  std::uint64_t queued() const { return done + work.size(); }
};
struct Event {
  Stream* stream = nullptr;
  std::uint64_t after = 0;
};
struct Pool {
  std::size_t used = 0;
  std::size_t peak = 0;
};

namespace {

constexpr std::size_t kDeviceBytes = std::size_t{2} << 30;
constexpr std::size_t kAlignment = 256;  // as CUDA's
constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;
constexpr std::size_t kMostPitch = 2147483647;
constexpr std::size_t kMostParameterBytes = 4096;
constexpr std::size_t kSharedBytesWithoutAsking = 48 << 10;

struct Allocation {
  std::size_t bytes;
  Pool* pool;
};
std::map<const std::byte*, Allocation> allocations;
std::map<const std::byte*, std::size_t> pinned;
std::map<const void*, std::size_t> shared_bytes_asked_for;
std::set<Stream*> streams;
std::size_t bytes_on_device = 0;
cudaError_t last_error = cudaSuccess;
std::string failure;  // of the first work that failed; like a real one it stays

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t run_until(Stream& stream, std::uint64_t count) {
  while (stream.done < count && failure.empty()) {
    const std::function<std::string()> work = std::move(stream.work.front());
    stream.work.pop_front();
    ++stream.done;
    failure = work();
  }
  return report(failure.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}

std::byte* with_guard(std::size_t bytes) {
  const std::size_t rounded = (bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (memory == nullptr) return nullptr;
  std::memset(memory, 0xff, bytes);
  std::memset(memory + bytes, kGuard, kGuardBytes);
  return memory;
}

bool guard_is_whole(const std::byte* end) {
  return std::all_of(end, end + kGuardBytes,
                     [](std::byte byte) { return byte == std::byte{kGuard}; });
}

// Bytes that a copy of `height` rows touches.
std::size_t extent_of(std::size_t pitch, std::size_t width, std::size_t height) {
  return height == 0 || width == 0 ? 0 : (height - 1) * pitch + width;
}

bool is_pinned(const void* memory, std::size_t bytes) {
  const auto* const at = static_cast<const std::byte*>(memory);
  auto after = pinned.upper_bound(at);
  if (after == pinned.begin()) return false;
  --after;
  return at + bytes <= after->first + after->second;
}

}  // namespace

bool on_device(const void* memory, std::size_t bytes) {
  if (bytes == 0) return true;
  const auto* const at = static_cast<const std::byte*>(memory);
  auto after = allocations.upper_bound(at);
  if (after == allocations.begin()) return false;
  --after;
  return at + bytes <= after->first + after->second.bytes;
}

void queue(cudaStream_t stream, std::function<std::string()> work) {
  stream->work.push_back(std::move(work));
}

cudaError_t check_launch(const void* kernel, const cudaLaunchConfig_t& config,
                         std::size_t parameter_bytes) {
  const dim3& g = config.gridDim;
  const dim3& b = config.blockDim;
  const auto asked = shared_bytes_asked_for.find(kernel);
  const std::size_t may = asked == shared_bytes_asked_for.end()
                              ? kSharedBytesWithoutAsking
                              : std::max(asked->second, kSharedBytesWithoutAsking);
  const bool good = g.x > 0 && g.y > 0 && g.z > 0 && g.x <= 2147483647u && g.y <= 65535u &&
                    g.z <= 65535u && b.x > 0 && b.y > 0 && b.z > 0 &&
                    std::size_t{b.x} * b.y * b.z <= kMostThreads && b.z <= 64 &&
                    config.dynamicSmemBytes <= may && parameter_bytes <= kMostParameterBytes &&
                    streams.contains(config.stream);
  return report(good ? cudaSuccess : cudaErrorInvalidValue);
}

void check_all_lanes(unsigned mask, std::source_location where) {
  if (mask != 0xffffffffu) fail("a part of a warp is asked to act together", where);
}

}  // namespace emulation

using emulation::failure;
using emulation::report;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? failure.c_str() : cudaGetErrorName(error);
}
cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device != 0) return report(cudaErrorInvalidDevice);
  *properties = {"emulation", 9, 0, emulation::kDeviceBytes};
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  *value = 1;
  return report(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaSetDevice(int device) {
  return report(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new emulation::Stream;
  emulation::streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t status = cudaStreamSynchronize(stream);
  emulation::streams.erase(stream);
  delete stream;
  return status;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return emulation::run_until(*stream, stream->queued());
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->stream == nullptr) return cudaSuccess;
  emulation::queue(stream, [other = event->stream, after = event->after] {
    (void)emulation::run_until(*other, after);
    return std::string();
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new emulation::Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  *event = {stream, stream->queued()};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream == nullptr) return cudaSuccess;
  return emulation::run_until(*event->stream, event->after);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = new emulation::Pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  delete pool;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  return report(attribute == cudaMemPoolAttrReleaseThreshold ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  *static_cast<std::uint64_t*>(value) =
      attribute == cudaMemPoolAttrUsedMemHigh ? pool->peak : pool->used;  // nothing is kept unused
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) { return cudaSuccess; }
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  if (!emulation::streams.contains(stream) || bytes == 0) return report(cudaErrorInvalidValue);
  std::byte* const found = bytes > emulation::kDeviceBytes - emulation::bytes_on_device
                               ? nullptr
                               : emulation::with_guard(bytes);
  if (found == nullptr) return report(cudaErrorMemoryAllocation);
  emulation::allocations[found] = {bytes, pool};
  emulation::bytes_on_device += bytes;
  pool->used += bytes;
  pool->peak = std::max(pool->peak, pool->used);
  *memory = found;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  emulation::queue(stream, [memory] {
    const auto found = emulation::allocations.find(static_cast<std::byte*>(memory));
    if (found == emulation::allocations.end()) return std::string("memory is freed that is none");
    const auto [bytes, pool] = found->second;
    const bool whole = emulation::guard_is_whole(found->first + bytes);
    emulation::allocations.erase(found);
    emulation::bytes_on_device -= bytes;
    pool->used -= bytes;
    std::free(memory);
    return whole ? std::string()
                 : "something wrote past an allocation of " + std::to_string(bytes) + " bytes";
  });
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = emulation::kDeviceBytes;
  *free = emulation::kDeviceBytes - emulation::bytes_on_device;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return report(cudaErrorMemoryAllocation);
  emulation::pinned[static_cast<std::byte*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  for (cudaStream_t stream : emulation::streams) (void)cudaStreamSynchronize(stream);
  emulation::pinned.erase(static_cast<std::byte*>(memory));
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  if (bytes == 0 || emulation::pinned.contains(static_cast<std::byte*>(memory))) {
    return report(cudaErrorInvalidValue);
  }
  emulation::pinned[static_cast<std::byte*>(memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* memory) {
  return report(emulation::pinned.erase(static_cast<std::byte*>(memory)) == 1
                    ? cudaSuccess
                    : cudaErrorInvalidValue);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  // Pageable memory is read or written before the call returns, as CUDA may.
  const bool in_call = (kind == cudaMemcpyHostToDevice && !emulation::is_pinned(from, bytes)) ||
                       (kind == cudaMemcpyDeviceToHost && !emulation::is_pinned(to, bytes));
  emulation::queue(stream, [=]() -> std::string {
    if ((kind != cudaMemcpyDeviceToHost && !emulation::on_device(to, bytes)) ||
        (kind != cudaMemcpyHostToDevice && !emulation::on_device(from, bytes))) {
      return "a copy leaves device memory";
    }
    std::memmove(to, from, bytes);
    return {};
  });
  return in_call ? cudaStreamSynchronize(stream) : cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  if (kind != cudaMemcpyDeviceToDevice || width > to_pitch || width > from_pitch ||
      to_pitch > emulation::kMostPitch || from_pitch > emulation::kMostPitch) {
    return report(cudaErrorInvalidValue);
  }
  emulation::queue(stream, [=]() -> std::string {
    if (!emulation::on_device(to, emulation::extent_of(to_pitch, width, height)) ||
        !emulation::on_device(from, emulation::extent_of(from_pitch, width, height))) {
      return "a copy leaves device memory";
    }
    for (std::size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<std::byte*>(to) + row * to_pitch,
                   static_cast<const std::byte*>(from) + row * from_pitch, width);
    }
    return {};
  });
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width,
                              std::size_t height, cudaStream_t stream) {
  if (width > pitch || pitch > emulation::kMostPitch) return report(cudaErrorInvalidValue);
  emulation::queue(stream, [=]() -> std::string {
    if (!emulation::on_device(to, emulation::extent_of(pitch, width, height))) {
      return "a fill leaves device memory";
    }
    for (std::size_t row = 0; row < height; ++row) {
      std::memset(static_cast<std::byte*>(to) + row * pitch, value, width);
    }
    return {};
  });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return cudaMemset2DAsync(to, bytes, value, bytes, 1, stream);
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<std::size_t>(value) > emulation::kMostSharedBytes) {
    return report(cudaErrorInvalidValue);
  }
  emulation::shared_bytes_asked_for[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
