#include "model/checkpoint/weight_prefetch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace roundhouse {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{32} << 20;

// Not by touching pages: a file that has become shorter would be a signal. Old kernels (before 5.14) are only asked to read.
void read_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data()) / page * page;
  const std::size_t length = reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size() - begin;
#ifdef MADV_POPULATE_READ
  if (madvise(reinterpret_cast<void*>(begin), length, MADV_POPULATE_READ) == 0) return;
#endif
  (void)madvise(reinterpret_cast<void*>(begin), length, MADV_WILLNEED);
}

}  // namespace

void WeightPrefetch::start(const DecoderBlock& decoder, int block, WeightPart part) {
  std::vector<std::span<const std::byte>> tensors;
  for (const auto& [linear, pieces] : pieces_of_part(decoder.linears(), part)) {
    const std::string name = decoder.module(block, linear) + ".weight";
    if (!checkpoint_.has(name)) continue;
    const HostView view = checkpoint_.view(name);
    tensors.push_back(bytes_of_pieces(view.bytes, size_of(view.type), pieces));
  }
  thread_ = std::jthread([tensors = std::move(tensors)](const std::stop_token& stop) {
    for (const std::span<const std::byte> bytes : tensors) {
      for (std::size_t at = 0; at < bytes.size() && !stop.stop_requested(); at += kPieceBytes) {
        read_pages(bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at)));
      }
    }
  });
}

}  // namespace roundhouse
