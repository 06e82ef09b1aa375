#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <thread>

#include "base/error.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/float.cuh"

namespace roundhouse {
namespace {

constexpr std::size_t kStagingBytes = std::size_t{16} << 20;  // of each pinned buffer
constexpr std::size_t kStagingStep = 256;  // pieces begin at multiples: a copy engine's favourite
constexpr int kMostCopiers = 4;
constexpr std::size_t kCopyBytes = std::size_t{1} << 20;  // that one thread copies at a time

cudaMemPool_t make_pool(int device) {
  int supported = 0;
  check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device),
        "cudaDeviceGetAttribute");
  if (supported == 0)
    throw Error("GPU " + std::to_string(device) + " has no stream-ordered allocator");
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool;
  check(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
  return pool;
}

std::size_t attribute_of(cudaMemPool_t pool, cudaMemPoolAttr attribute) {
  std::uint64_t bytes = 0;
  check(cudaMemPoolGetAttribute(pool, attribute, &bytes), "cudaMemPoolGetAttribute");
  return bytes;
}

template <class From, class To, int kWidth>
struct Convert {
  ConstMatrix from;
  Matrix to;
  __device__ void operator()(std::int64_t row, std::int64_t col) const {
    store<To, kWidth>(load<From, kWidth>(from, row, col), to, row, col);
  }
};

}  // namespace

Unique<cudaStream_t, &cudaStreamDestroy> make_cuda_stream() {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return Unique<cudaStream_t, &cudaStreamDestroy>(stream);
}

Unique<cudaEvent_t, &cudaEventDestroy> make_cuda_event() {
  cudaEvent_t event;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return Unique<cudaEvent_t, &cudaEventDestroy>(event);
}

CudaPool::CudaPool(int device)
    : device_(device), pool_(make_pool(device)), stream_(make_cuda_stream()) {
  std::uint64_t keep_all = std::numeric_limits<std::uint64_t>::max();
  check(cudaMemPoolSetAttribute(pool_.get(), cudaMemPoolAttrReleaseThreshold, &keep_all),
        "cudaMemPoolSetAttribute");
}

CudaPool::~CudaPool() {
  (void)cudaStreamSynchronize(stream_.get());  // the last frees are still queued
}

Buffer CudaPool::allocate(std::size_t bytes) {
  check(cudaSetDevice(device_), "cudaSetDevice");
  void* memory = nullptr;
  const std::size_t wanted = std::max<std::size_t>(bytes, 1);
  cudaError_t status = cudaMallocFromPoolAsync(&memory, wanted, pool_.get(), stream_.get());
  if (status == cudaErrorMemoryAllocation) {
    // What was freed in stream order is there once the stream has come to it, and unused pages can be mapped anew.
    (void)cudaGetLastError();
    check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    check(cudaMemPoolTrimTo(pool_.get(), 0), "cudaMemPoolTrimTo");
    status = cudaMallocFromPoolAsync(&memory, wanted, pool_.get(), stream_.get());
  }
  if (status == cudaErrorMemoryAllocation) {
    (void)cudaGetLastError();
    std::size_t free = 0;
    std::size_t total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    throw Error("GPU " + std::to_string(device_) + ": out of memory: " + std::to_string(bytes) +
                " bytes wanted, " + std::to_string(free) + " of " + std::to_string(total) +
                " free, " + std::to_string(bytes_in_use()) + " in use here, " +
                std::to_string(peak_bytes()) + " at the peak (" + cudaGetErrorString(status) + ")");
  }
  check(status, "cudaMallocFromPoolAsync");
  return {static_cast<std::byte*>(memory), [pool = shared_from_this()](std::byte* p) {
            (void)cudaFreeAsync(p, pool->stream());  // a destructor's: nobody could catch
          }};
}

std::size_t CudaPool::available_bytes(std::size_t sharers) const {
  check(cudaSetDevice(device_), "cudaSetDevice");
  std::size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free / sharers + attribute_of(pool_.get(), cudaMemPoolAttrReservedMemCurrent) -
         bytes_in_use();
}

std::size_t CudaPool::bytes_in_use() const {
  return attribute_of(pool_.get(), cudaMemPoolAttrUsedMemCurrent);
}

std::size_t CudaPool::peak_bytes() const {
  return attribute_of(pool_.get(), cudaMemPoolAttrUsedMemHigh);
}

CudaStaging::CudaStaging(cudaStream_t stream)
    : stream_(stream),
      threads_(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostCopiers)) {
}

void CudaStaging::make_halves() {
  if (halves_[0].memory.get() != nullptr) return;
  for (Half& half : halves_) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, kStagingBytes, cudaHostAllocDefault), "cudaHostAlloc");
    half.memory = Unique<void*, &cudaFreeHost>(memory);
    half.copied = make_cuda_event();
  }
}

void CudaStaging::copy(const std::byte* from, std::byte* to, std::size_t bytes) {
  for_each_range(threads_, static_cast<std::int64_t>(bytes), kCopyBytes,
                 [&](std::int64_t begin, std::int64_t end) {
                   std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
                 });
}

// Leaves the current half to the copies that read it and goes on to the other one once that is free.
void CudaStaging::turn() {
  check(cudaEventRecord(halves_[current_].copied.get(), stream_), "cudaEventRecord");
  current_ = 1 - current_;
  check(cudaEventSynchronize(halves_[current_].copied.get()), "cudaEventSynchronize");
  used_ = 0;
}

void CudaStaging::upload(std::span<const std::byte> from, void* to) {
  make_halves();
  std::byte* target = static_cast<std::byte*>(to);
  while (!from.empty()) {
    if (used_ == kStagingBytes) turn();
    const std::size_t bytes = std::min(from.size(), kStagingBytes - used_);
    std::byte* const piece = memory(current_) + used_;
    copy(from.data(), piece, bytes);
    check(cudaMemcpyAsync(target, piece, bytes, cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
    used_ += (bytes + kStagingStep - 1) / kStagingStep * kStagingStep;
    from = from.subspan(bytes);
    target += bytes;
  }
}

void CudaStaging::download(const void* from, std::span<std::byte> to) {
  make_halves();
  const std::byte* const source = static_cast<const std::byte*>(from);
  const auto bytes_at = [&](std::size_t begin) {
    return std::min(kStagingBytes, to.size() - begin);
  };
  // Uploads that still read a half are before these copies in the stream.
  const auto queue = [&](std::size_t begin, std::size_t half) {
    check(cudaMemcpyAsync(memory(half), source + begin, bytes_at(begin), cudaMemcpyDeviceToHost,
                          stream_),
          "cudaMemcpyAsync");
    check(cudaEventRecord(halves_[half].copied.get(), stream_), "cudaEventRecord");
  };
  if (!to.empty()) queue(0, 0);
  for (std::size_t begin = 0, half = 0; begin < to.size();
       begin += kStagingBytes, half = 1 - half) {
    if (begin + kStagingBytes < to.size()) queue(begin + kStagingBytes, 1 - half);
    check(cudaEventSynchronize(halves_[half].copied.get()), "cudaEventSynchronize");
    copy(memory(half), to.data() + begin, bytes_at(begin));
  }
  if (!to.empty()) used_ = 0;
}

std::size_t CudaBackend::available_bytes() const {
  return device_->pool().available_bytes(sharers_);
}

Buffer CudaBackend::allocate(std::size_t bytes) { return device_->pool().allocate(bytes); }

void CudaBackend::upload(std::span<const std::byte> from, void* to) {
  (void)device_->stream();
  device_->staging().upload(from, to);
}

void CudaBackend::download(const void* from, std::span<std::byte> to) {
  (void)device_->stream();
  device_->staging().download(from, to);
}

void CudaBackend::sync() { device_->sync(); }

Memory::UploadTicket CudaBackend::upload_ahead(std::span<const std::byte> from, void* to) {
  (void)device_->stream();
  return device_->side_copies().upload(from, to);
}

void CudaBackend::await_upload(UploadTicket ticket) {
  (void)device_->stream();
  device_->side_copies().await_upload(ticket);
}

void CudaBackend::download_behind(const void* from, std::span<std::byte> to) {
  (void)device_->stream();
  device_->side_copies().download(from, to);
}

void CudaBackend::finish_downloads() { device_->side_copies().finish_downloads(); }

std::string CudaBackend::pin(std::span<std::byte> host) {
  (void)device_->stream();
  return device_->side_copies().pin(host);
}

void CudaBackend::unpin(std::span<std::byte> host) noexcept { device_->side_copies().unpin(host); }

void CudaBackend::copy(ConstMatrix from, Matrix to) {
  require(from.rows == to.rows && from.cols == to.cols, "copy: shapes differ");
  if (from.rows == 0 || from.cols == 0) return;
  if (from.type == to.type) {
    const std::size_t size = size_of(from.type);
    check(cudaMemcpy2DAsync(to.data, static_cast<std::size_t>(to.stride) * size, from.data,
                            static_cast<std::size_t>(from.stride) * size,
                            static_cast<std::size_t>(from.cols) * size,
                            static_cast<std::size_t>(from.rows), cudaMemcpyDeviceToDevice,
                            device_->stream()),
          "cudaMemcpy2DAsync");
    return;
  }
  with_float_type(from.type, [&](auto from_type) {
    with_float_type(to.type, [&](auto to_type) {
      with_width(can_pack(from) && can_pack(to), [&](auto width) {
        using From = typename decltype(from_type)::type;
        using To = typename decltype(to_type)::type;
        for_each_element(from.rows, from.cols, width, device_->stream(),
                         Convert<From, To, width()>{from, to});
      });
    });
  });
}

void CudaBackend::zero(Matrix m) {
  if (m.rows == 0 || m.cols == 0) return;
  const std::size_t size = size_of(m.type);
  check(cudaMemset2DAsync(m.data, static_cast<std::size_t>(m.stride) * size, 0,
                          static_cast<std::size_t>(m.cols) * size, static_cast<std::size_t>(m.rows),
                          device_->stream()),
        "cudaMemset2DAsync");
}

}  // namespace roundhouse
