#include <utility>

#include "base/error.h"
#include "kernels/cuda_check.cuh"
#include "kernels/cuda_memory.cuh"

namespace roundhouse {

CudaSideCopies::CudaSideCopies(std::shared_ptr<CudaPool> pool)
    : pool_(std::move(pool)), in_(make_cuda_stream()), out_(make_cuda_stream()) {}

CudaSideCopies::~CudaSideCopies() {
  (void)cudaStreamSynchronize(in_.get());  // a destructor's: nobody could catch
  (void)cudaStreamSynchronize(out_.get());
  for (const std::byte* host : pinned_) (void)cudaHostUnregister(const_cast<std::byte*>(host));
}

CudaSideCopies::Event CudaSideCopies::record(cudaStream_t stream) {
  Event event = make_cuda_event();
  check(cudaEventRecord(event.get(), stream), "cudaEventRecord");
  return event;
}

Memory::UploadTicket CudaSideCopies::upload(std::span<const std::byte> from, void* to) {
  const Event before = record(pool_->stream());
  check(cudaStreamWaitEvent(in_.get(), before.get(), 0), "cudaStreamWaitEvent");
  check(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyHostToDevice, in_.get()),
        "cudaMemcpyAsync");
  uploads_.emplace(next_ticket_, record(in_.get()));
  return next_ticket_++;
}

void CudaSideCopies::await_upload(Memory::UploadTicket ticket) {
  const auto found = uploads_.find(ticket);
  require(found != uploads_.end(), "an upload that was not begun is awaited, or one twice");
  check(cudaStreamWaitEvent(pool_->stream(), found->second.get(), 0), "cudaStreamWaitEvent");
  uploads_.erase(found);
}

// By way of a copy on the device, which costs a hundredth of the one to the host: then the source may change at once.
void CudaSideCopies::download(const void* from, std::span<std::byte> to) {
  Buffer aside = pool_->allocate(to.size());
  check(cudaMemcpyAsync(aside.get(), from, to.size(), cudaMemcpyDeviceToDevice, pool_->stream()),
        "cudaMemcpyAsync");
  const Event copied = record(pool_->stream());
  check(cudaStreamWaitEvent(out_.get(), copied.get(), 0), "cudaStreamWaitEvent");
  check(cudaMemcpyAsync(to.data(), aside.get(), to.size(), cudaMemcpyDeviceToHost, out_.get()),
        "cudaMemcpyAsync");
  // Freed where it is read last, not on the stream that it was allocated on.
  check(cudaFreeAsync(aside.release(), out_.get()), "cudaFreeAsync");
}

void CudaSideCopies::finish_downloads() {
  check(cudaStreamSynchronize(out_.get()), "cudaStreamSynchronize");
}

void CudaSideCopies::pin(std::span<std::byte> host) {
  if (host.empty()) return;
  if (cudaHostRegister(host.data(), host.size(), cudaHostRegisterDefault) == cudaSuccess) {
    pinned_.insert(host.data());
  } else {
    (void)cudaGetLastError();  // copies are slower, that is all
  }
}

void CudaSideCopies::unpin(std::span<std::byte> host) noexcept {
  if (pinned_.erase(host.data()) == 0) return;
  (void)cudaStreamSynchronize(in_.get());  // while an error unwinds copies may still be under way
  (void)cudaStreamSynchronize(out_.get());
  (void)cudaHostUnregister(host.data());
  (void)cudaGetLastError();
}

}  // namespace roundhouse
