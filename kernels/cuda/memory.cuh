// Memory of one GPU, and the stream in whose order everything happens.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "base/unique.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/memory.h"

namespace roundhouse {

Unique<cudaStream_t, &cudaStreamDestroy> make_cuda_stream();
Unique<cudaEvent_t, &cudaEventDestroy> make_cuda_event();

// CUDA's stream-ordered allocator with a pool of our own that keeps what is freed: allocating costs microseconds, a buffer is
// freed in the order of the stream that used it, and, unlike blocks cached over cudaMalloc, free memory never goes to waste
// in pieces of the wrong size, since the pool maps pages anew.
//
// Buffers keep the pool and the stream alive (hence the shared_ptr): a buffer may outlive its backend.
class CudaPool : public std::enable_shared_from_this<CudaPool> {
 public:
  explicit CudaPool(int device);
  ~CudaPool();
  CudaPool(const CudaPool&) = delete;
  CudaPool& operator=(const CudaPool&) = delete;

  Buffer allocate(std::size_t bytes);
  cudaStream_t stream() const { return stream_.get(); }
  // Kept here unused, or free on the device, where `sharers` pools take from it.
  std::size_t available_bytes(std::size_t sharers) const;
  std::size_t bytes_in_use() const;
  std::size_t peak_bytes() const;

 private:
  int device_;
  Unique<cudaMemPool_t, &cudaMemPoolDestroy> pool_;
  Unique<cudaStream_t, &cudaStreamDestroy> stream_;
};

// Copies between pageable host memory and the GPU through two pinned buffers, so that the GPU reads one while threads fill
// the other: the driver's own path for pageable memory runs at a fraction of PCIe's speed and waits for the stream.
class CudaStaging {
 public:
  explicit CudaStaging(cudaStream_t stream);

  // Returns when the last piece is queued.
  void upload(std::span<const std::byte> from, void* to);
  // Returns when the bytes are there, and with them all that was queued before.
  void download(const void* from, std::span<std::byte> to);
  // The stream has been waited for: both buffers are free.
  void forget() { used_ = 0; }

 private:
  struct Half {
    Unique<void*, &cudaFreeHost> memory;
    Unique<cudaEvent_t, &cudaEventDestroy>
        copied;  // recorded after the last copy that uses `memory`
  };
  void make_halves();
  void turn();
  void copy(const std::byte* from, std::byte* to, std::size_t bytes);
  std::byte* memory(std::size_t half) const {
    return static_cast<std::byte*>(halves_[half].memory.get());
  }

  cudaStream_t stream_;
  std::array<Half, 2> halves_;
  std::size_t current_ = 0;  // the half that uploads fill
  std::size_t used_ = 0;     // bytes of it that copies still queued may read
  ThreadPool threads_;       // one core copies at a quarter of PCIe 5's speed
};

// Copies beside the stream of the kernels, on two streams of their own: see Memory::upload_ahead() and its neighbours.
class CudaSideCopies {
 public:
  explicit CudaSideCopies(std::shared_ptr<CudaPool> pool);
  ~CudaSideCopies();
  CudaSideCopies(const CudaSideCopies&) = delete;
  CudaSideCopies& operator=(const CudaSideCopies&) = delete;

  Memory::UploadTicket upload(std::span<const std::byte> from, void* to);
  void await_upload(Memory::UploadTicket ticket);
  void download(const void* from, std::span<std::byte> to);
  void finish_downloads();
  std::string pin(std::span<std::byte> host);
  void unpin(std::span<std::byte> host) noexcept;

 private:
  using Event = Unique<cudaEvent_t, &cudaEventDestroy>;
  Event record(cudaStream_t stream);
  std::size_t alike(std::span<const std::byte> host) const;

  std::shared_ptr<CudaPool> pool_;
  Unique<cudaStream_t, &cudaStreamDestroy> in_;
  Unique<cudaStream_t, &cudaStreamDestroy> out_;
  std::map<Memory::UploadTicket, Event> uploads_;  // that nobody has awaited yet
  Memory::UploadTicket next_ticket_ = 1;
  std::map<const std::byte*, std::size_t> pinned_;  // begin, bytes
};

}  // namespace roundhouse
