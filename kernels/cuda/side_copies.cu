#include <sys/resource.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "base/error.h"
#include "kernels/cuda/check.cuh"
#include "kernels/cuda/memory.cuh"

namespace roundhouse {

CudaSideCopies::CudaSideCopies(std::shared_ptr<CudaPool> pool)
    : pool_(std::move(pool)), in_(make_cuda_stream()), out_(make_cuda_stream()) {}

CudaSideCopies::~CudaSideCopies() {
  (void)cudaStreamSynchronize(in_.get());  // a destructor's: nobody could catch
  (void)cudaStreamSynchronize(out_.get());
  for (const auto& [host, bytes] : pinned_) (void)cudaHostUnregister(const_cast<std::byte*>(host));
}

CudaSideCopies::Event CudaSideCopies::record(cudaStream_t stream) {
  Event event = make_cuda_event();
  check(cudaEventRecord(event.get(), stream), "cudaEventRecord");
  return event;
}

Memory::UploadTicket CudaSideCopies::upload(std::span<const std::byte> from, void* to) {
  const Event before = record(pool_->stream());
  check(cudaStreamWaitEvent(in_.get(), before.get(), 0), "cudaStreamWaitEvent");
  for (auto* target = static_cast<std::byte*>(to); !from.empty();) {
    const std::size_t bytes = alike(from);
    check(cudaMemcpyAsync(target, from.data(), bytes, cudaMemcpyHostToDevice, in_.get()),
          "cudaMemcpyAsync");
    from = from.subspan(bytes);
    target += bytes;
  }
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
  for (const std::byte* source = aside.get(); !to.empty();) {
    const std::size_t bytes = alike(to);
    check(cudaMemcpyAsync(to.data(), source, bytes, cudaMemcpyDeviceToHost, out_.get()),
          "cudaMemcpyAsync");
    to = to.subspan(bytes);
    source += bytes;
  }
  // Freed where it is read last, not on the stream that it was allocated on.
  check(cudaFreeAsync(aside.release(), out_.get()), "cudaFreeAsync");
}

void CudaSideCopies::finish_downloads() {
  check(cudaStreamSynchronize(out_.get()), "cudaStreamSynchronize");
}

// How many bytes from the beginning of `host` on are pinned together, or not at all: CUDA refuses a copy that is both.
std::size_t CudaSideCopies::alike(std::span<const std::byte> host) const {
  const auto after = pinned_.upper_bound(host.data());
  if (after != pinned_.begin()) {
    const auto& [begin, bytes] = *std::prev(after);
    if (host.data() < begin + bytes)
      return std::min(host.size(), static_cast<std::size_t>(begin + bytes - host.data()));
  }
  if (after == pinned_.end()) return host.size();
  return std::min(host.size(), static_cast<std::size_t>(after->first - host.data()));
}

std::string CudaSideCopies::pin(std::span<std::byte> host) {
  if (host.empty()) return {};
  const cudaError_t status = cudaHostRegister(host.data(), host.size(), cudaHostRegisterDefault);
  if (status == cudaSuccess) {
    pinned_.emplace(host.data(), host.size());
    return {};
  }
  (void)cudaGetLastError();
  std::string why = std::string("cudaHostRegister: ") + cudaGetErrorString(status);
  rlimit lockable{};
  if (getrlimit(RLIMIT_MEMLOCK, &lockable) == 0 && lockable.rlim_cur != RLIM_INFINITY) {
    why += "; the limit on locked memory is " + std::to_string(lockable.rlim_cur >> 10) +
           " KiB (ulimit -l)";
  }
  return why;
}

void CudaSideCopies::unpin(std::span<std::byte> host) noexcept {
  if (pinned_.erase(host.data()) == 0) return;
  (void)cudaStreamSynchronize(in_.get());  // while an error unwinds copies may still be under way
  (void)cudaStreamSynchronize(out_.get());
  (void)cudaHostUnregister(host.data());
  (void)cudaGetLastError();
}

}  // namespace roundhouse
