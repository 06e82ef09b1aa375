// Streams that put off all work until somebody waits, and memory that is full of NaN and used again as soon as it may be.
#include "tests/cuda_emulation/calls.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <limits>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

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
// Memory is freed for the host when cudaFreeAsync() returns, for the stream when it comes to it. Until then work that the
// stream has before it still finds the old contents, whoever has the memory by then.
struct Pool {
  struct Freed {
    std::byte* memory;
    Stream* stream;       // nullptr: has ended
    std::uint64_t after;  // that much of its work
    bool reached() const { return stream == nullptr || stream->done >= after; }
  };
  std::size_t used = 0;
  std::size_t peak = 0;
  std::size_t reserved = 0;
  std::vector<Freed> free;  // the newest last
};

namespace {

constexpr std::size_t kDeviceBytes = std::size_t{2} << 30;
constexpr std::size_t kAlignment = 256;  // as CUDA's
constexpr std::size_t kGuardBytes = 256;
constexpr unsigned char kGuard = 0xa5;
constexpr std::size_t kMostPitch = 2147483647;
constexpr std::size_t kMostParameterBytes = 4096;
constexpr std::size_t kSharedBytesWithoutAsking = 48 << 10;

struct Block {
  Pool* pool;
  std::size_t capacity;
  std::size_t given = 0;  // bytes of the allocation as the host sees it; 0: none
  std::size_t bytes = 0;  // and as the streams' work finds it
};
std::map<const std::byte*, Block> blocks;
std::set<Pool*> pools;
std::map<const std::byte*, std::size_t> pinned;
Pinning registered;  // of `pinned`
std::map<const void*, std::size_t> shared_bytes_asked_for;
std::set<Stream*> streams;
std::size_t bytes_on_device = 0;
cudaError_t last_error = cudaSuccess;
std::string failure;  // of the first work that failed; like a real one it stays
Calls counted;
std::set<const Stream*> with_kernels;

void count(const std::string& call) {
  static const std::set<std::string> kernels = {"cudaLaunchKernelEx", "cublasGemmEx_64",
                                                "cusolverDnXpotrf", "cusolverDnXtrtri"};
  if (kernels.contains(call)) ++counted.kernels;
  if (call == "cudaStreamSynchronize" || call == "cudaEventSynchronize") ++counted.waits;
}

cudaError_t report(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// "NAME:N": the N-th call of NAME finds the device broken. See README.md.
bool is_to_fail(const std::string& call) {
  static const char* const asked = std::getenv("ROUNDHOUSE_EMULATION_FAIL");
  static int left = -1;
  if (asked == nullptr) return false;
  const std::string text = asked;
  const std::size_t colon = text.find(':');
  if (text.substr(0, colon) != call) return false;
  if (left < 0) left = std::atoi(text.c_str() + colon + 1);
  return left > 0 && --left == 0;
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

#if defined(__SANITIZE_ADDRESS__)
void forbid(const std::byte* memory, std::size_t bytes) {
  __asan_poison_memory_region(memory, bytes);
}
void allow(const std::byte* memory, std::size_t bytes) {
  __asan_unpoison_memory_region(memory, bytes);
}
#else
void forbid(const std::byte*, std::size_t) {}
void allow(const std::byte*, std::size_t) {}
#endif

std::size_t with_guard(std::size_t bytes) {
  return (bytes + kGuardBytes + kAlignment - 1) / kAlignment * kAlignment;
}

// What a block's memory holds at first.
void fill(std::byte* memory, std::size_t bytes) {
  allow(memory, bytes + kGuardBytes);
  std::memset(memory, 0xff, bytes);
  std::memset(memory + bytes, kGuard, kGuardBytes);
}

// Gives unused memory back until the pool holds no more than `keep`.
void trim(Pool& pool, std::size_t keep) {
  for (auto at = pool.free.begin(); at != pool.free.end() && pool.reserved > keep;) {
    if (!at->reached()) {
      ++at;
      continue;
    }
    const auto found = blocks.find(at->memory);
    const std::size_t capacity = found->second.capacity;
    allow(at->memory, with_guard(capacity));
    std::free(at->memory);
    blocks.erase(found);
    pool.reserved -= capacity;
    bytes_on_device -= capacity;
    at = pool.free.erase(at);
  }
}

// Memory that was freed, for work of this stream: at once if it was freed there, else when the other stream has come to it. The
// smallest that is large enough, and of those the last to be freed. nullptr: none.
std::byte* take_freed(Pool& pool, std::size_t bytes, const Stream* stream) {
  auto best = pool.free.end();
  std::size_t least = kDeviceBytes + 1;
  for (auto at = pool.free.begin(); at != pool.free.end(); ++at) {
    const std::size_t capacity = blocks.at(at->memory).capacity;
    if (capacity < bytes || capacity > least || (at->stream != stream && !at->reached())) continue;
    best = at;
    least = capacity;
  }
  if (best == pool.free.end()) return nullptr;
  std::byte* const memory = best->memory;
  pool.free.erase(best);
  return memory;
}

std::byte* take_new(Pool& pool, std::size_t bytes) {
  if (bytes > kDeviceBytes) return nullptr;
  if (bytes > kDeviceBytes - bytes_on_device) trim(pool, 0);
  if (bytes > kDeviceBytes - bytes_on_device) return nullptr;
  auto* const memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, with_guard(bytes)));
  if (memory == nullptr) return nullptr;
  forbid(memory, with_guard(bytes));
  blocks[memory] = {.pool = &pool, .capacity = bytes};
  pool.reserved += bytes;
  bytes_on_device += bytes;
  return memory;
}

// The block that holds these bytes, or nullptr.
const std::pair<const std::byte* const, Block>* block_around(const void* memory) {
  const auto after = blocks.upper_bound(static_cast<const std::byte*>(memory));
  return after == blocks.begin() ? nullptr : &*std::prev(after);
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

// CUDA refuses copies of host memory that is pinned in part.
bool is_partly_pinned(const void* memory, std::size_t bytes) {
  if (is_pinned(memory, bytes)) return false;
  const auto* const at = static_cast<const std::byte*>(memory);
  return std::ranges::any_of(pinned, [&](const auto& piece) {
    return piece.first < at + bytes && at < piece.first + piece.second;
  });
}

// The GPUs that CUDA shows this process, by name: see ../README.md.
std::vector<std::string> visible_gpus() {
  const char* const names = std::getenv("EMULATED_GPUS");
  std::istringstream text(names == nullptr ? "emulation 0,emulation 1,emulation 2,emulation 3"
                                           : names);
  std::vector<std::string> gpus;
  for (std::string name; std::getline(text, name, ',');) gpus.push_back(name);
  return gpus;
}
bool is_visible(int device) {
  return device >= 0 && static_cast<std::size_t>(device) < visible_gpus().size();
}

int current_device = 0;

std::size_t pinnable_bytes() {
  const char* const limit = std::getenv("EMULATED_PINNABLE_BYTES");
  return limit == nullptr ? std::numeric_limits<std::size_t>::max() : std::stoull(limit);
}

}  // namespace

cudaError_t begin_call(const char* call) {
  count(call);
  if (failure.empty() && is_to_fail(call)) failure = "the device was broken on purpose";
  return report(failure.empty() ? cudaSuccess : cudaErrorLaunchFailure);
}
const Pinning& pinning() { return registered; }
const Calls& calls() { return counted; }

std::string current_gpu() { return visible_gpus()[current_device]; }

bool on_device(const void* memory, std::size_t bytes) {
  if (bytes == 0) return true;
  const auto* const block = block_around(memory);
  return block != nullptr &&
         static_cast<const std::byte*>(memory) + bytes <= block->first + block->second.bytes;
}

bool is_allocated(const void* memory, std::size_t bytes) {
  const auto* const block = block_around(memory);
  return block != nullptr &&
         static_cast<const std::byte*>(memory) + bytes <= block->first + block->second.given;
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
  if (const cudaError_t broken = begin_call("cudaLaunchKernelEx"); broken != cudaSuccess) {
    return broken;
  }
  with_kernels.insert(config.stream);
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

// The head of every call: once the device is broken it fails, as it does on a real one.
#define EMULATION_CALL()                                                                 \
  if (const cudaError_t broken = emulation::begin_call(__func__); broken != cudaSuccess) \
  return broken

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
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
  EMULATION_CALL();
  *count = static_cast<int>(emulation::visible_gpus().size());
  return report(*count == 0 ? cudaErrorNoDevice : cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  EMULATION_CALL();
  if (!emulation::is_visible(device)) return report(cudaErrorInvalidDevice);
  *properties = {"emulation", {}, 9, 0, emulation::kDeviceBytes};
  const std::string name = emulation::visible_gpus()[device];
  name.copy(properties->uuid.bytes, sizeof properties->uuid.bytes);
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  EMULATION_CALL();
  *value = 1;
  return report(emulation::is_visible(device) ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaSetDevice(int device) {
  EMULATION_CALL();
  if (!emulation::is_visible(device)) return report(cudaErrorInvalidDevice);
  emulation::current_device = device;
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  EMULATION_CALL();
  *stream = new emulation::Stream;
  emulation::streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const cudaError_t broken = emulation::begin_call("cudaStreamDestroy");
  const cudaError_t status = emulation::run_until(*stream, stream->queued());
  emulation::streams.erase(stream);
  emulation::with_kernels.erase(stream);
  for (emulation::Pool* pool : emulation::pools) {
    for (emulation::Pool::Freed& freed : pool->free) {
      if (freed.stream == stream) freed.stream = nullptr;
    }
  }
  delete stream;
  return broken == cudaSuccess ? status : broken;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  EMULATION_CALL();
  return emulation::run_until(*stream, stream->queued());
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  EMULATION_CALL();
  if (event->stream == nullptr) return cudaSuccess;
  emulation::queue(stream, [other = event->stream, after = event->after] {
    (void)emulation::run_until(*other, after);
    return std::string();
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  EMULATION_CALL();
  *event = new emulation::Event;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const cudaError_t status = emulation::begin_call("cudaEventDestroy");
  delete event;
  return status;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  EMULATION_CALL();
  *event = {stream, stream->queued()};
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  EMULATION_CALL();
  if (event->stream == nullptr) return cudaSuccess;
  return emulation::run_until(*event->stream, event->after);
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  EMULATION_CALL();
  *pool = new emulation::Pool;
  emulation::pools.insert(*pool);
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  const cudaError_t status = emulation::begin_call("cudaMemPoolDestroy");
  emulation::trim(*pool, 0);
  emulation::pools.erase(pool);
  delete pool;
  return status;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void*) {
  EMULATION_CALL();
  return report(attribute == cudaMemPoolAttrReleaseThreshold ? cudaSuccess : cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
  EMULATION_CALL();
  *static_cast<std::uint64_t*>(value) = attribute == cudaMemPoolAttrUsedMemHigh ? pool->peak
                                        : attribute == cudaMemPoolAttrUsedMemCurrent
                                            ? pool->used
                                            : pool->reserved;
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, std::size_t keep) {
  EMULATION_CALL();
  emulation::trim(*pool, keep);
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void** memory, std::size_t bytes, cudaMemPool_t pool,
                                    cudaStream_t stream) {
  EMULATION_CALL();
  if (!emulation::streams.contains(stream) || bytes == 0) return report(cudaErrorInvalidValue);
  std::byte* found = emulation::take_freed(*pool, bytes, stream);
  if (found == nullptr) found = emulation::take_new(*pool, bytes);
  if (found == nullptr) return report(cudaErrorMemoryAllocation);
  emulation::blocks.at(found).given = bytes;
  emulation::queue(stream, [found, bytes] {
    emulation::blocks.at(found).bytes = bytes;
    emulation::fill(found, bytes);
    return std::string();
  });
  pool->used += bytes;
  pool->peak = std::max(pool->peak, pool->used);
  *memory = found;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  EMULATION_CALL();
  auto* const at = static_cast<std::byte*>(memory);
  const auto found = emulation::blocks.find(at);
  if (found == emulation::blocks.end() || found->second.given == 0) {
    emulation::queue(stream, [] { return std::string("memory is freed that is none"); });
    return report(cudaErrorInvalidValue);
  }
  emulation::queue(stream, [at] {
    emulation::Block& block = emulation::blocks.at(at);
    const std::size_t bytes = std::exchange(block.bytes, 0);
    const bool whole = emulation::guard_is_whole(at + bytes);
    emulation::forbid(at, emulation::with_guard(block.capacity));
    return whole ? std::string()
                 : "something wrote past an allocation of " + std::to_string(bytes) + " bytes";
  });
  emulation::Pool& pool = *found->second.pool;
  pool.used -= std::exchange(found->second.given, 0);
  pool.free.push_back({at, stream, stream->queued()});
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  EMULATION_CALL();
  *total = emulation::kDeviceBytes;
  *free = emulation::kDeviceBytes - emulation::bytes_on_device;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned) {
  EMULATION_CALL();
  *memory = std::malloc(bytes);
  if (*memory == nullptr) return report(cudaErrorMemoryAllocation);
  emulation::pinned[static_cast<std::byte*>(*memory)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  const cudaError_t status = emulation::begin_call("cudaFreeHost");
  for (cudaStream_t stream : emulation::streams) {
    (void)emulation::run_until(*stream, stream->queued());
  }
  emulation::pinned.erase(static_cast<std::byte*>(memory));
  std::free(memory);
  return status;
}
cudaError_t cudaHostRegister(void* memory, std::size_t bytes, unsigned) {
  EMULATION_CALL();
  if (bytes == 0 || emulation::pinned.contains(static_cast<std::byte*>(memory))) {
    return report(cudaErrorInvalidValue);
  }
  emulation::Pinning& registered = emulation::registered;
  if (bytes > emulation::pinnable_bytes() - registered.bytes) {
    return report(cudaErrorMemoryAllocation);
  }
  emulation::pinned[static_cast<std::byte*>(memory)] = bytes;
  ++registered.pins;
  registered.bytes += bytes;
  registered.most_bytes = std::max(registered.most_bytes, registered.bytes);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* memory) {
  EMULATION_CALL();
  const auto found = emulation::pinned.find(static_cast<std::byte*>(memory));
  if (found == emulation::pinned.end()) return report(cudaErrorInvalidValue);
  ++emulation::registered.unpins;
  emulation::registered.bytes -= found->second;
  emulation::pinned.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  EMULATION_CALL();
  if ((kind == cudaMemcpyHostToDevice && emulation::is_partly_pinned(from, bytes)) ||
      (kind == cudaMemcpyDeviceToHost && emulation::is_partly_pinned(to, bytes))) {
    return report(cudaErrorInvalidValue);
  }
  if (kind == cudaMemcpyHostToDevice) {
    emulation::counted.bytes_up += static_cast<std::int64_t>(bytes);
    if (!emulation::with_kernels.contains(stream))
      emulation::counted.bytes_ahead += static_cast<std::int64_t>(bytes);
  }
  if (kind == cudaMemcpyDeviceToHost)
    emulation::counted.bytes_down += static_cast<std::int64_t>(bytes);
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
  return in_call ? emulation::run_until(*stream, stream->queued()) : cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from,
                              std::size_t from_pitch, std::size_t width, std::size_t height,
                              cudaMemcpyKind kind, cudaStream_t stream) {
  EMULATION_CALL();
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
  EMULATION_CALL();
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
  EMULATION_CALL();
  if (value < 0 || static_cast<std::size_t>(value) > emulation::kMostSharedBytes) {
    return report(cudaErrorInvalidValue);
  }
  emulation::shared_bytes_asked_for[kernel] = static_cast<std::size_t>(value);
  return cudaSuccess;
}
