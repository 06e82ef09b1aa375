// Device memory through host memory: for ranks that share a GPU, and where there is no NCCL.
#pragma once

#include <functional>
#include <memory>

#include "comm/communicator.h"

namespace roundhouse {

// How the memory of one device is reached; both return when the bytes are there.
struct DeviceCopies {
  std::function<void(std::span<const std::byte> device, std::span<std::byte> host)> download;
  std::function<void(std::span<const std::byte> host, std::span<std::byte> device)> upload;
};

// Messages travel in pieces of `piece_bytes`, one at a time for each pair of ranks and direction, so that host memory holds
// no more than that. Collective over `host`.
std::unique_ptr<Transport> make_staged_transport(Communicator& host, DeviceCopies copies,
                                                 std::size_t piece_bytes = std::size_t{32} << 20);

}  // namespace roundhouse
