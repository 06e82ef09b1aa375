#include "comm/device_transport.h"

#if ROUNDHOUSE_CUDA
#include <algorithm>
#include <vector>

#include "comm/nccl_transport.h"
#endif

namespace roundhouse {

DeviceTransport make_device_transport(Communicator& host, DeviceCopies copies) {
  std::string why = "built without NCCL";
#if ROUNDHOUSE_CUDA
  const std::string mine = current_gpu();
  std::vector<std::vector<std::byte>> gpus = host.all_gather(std::as_bytes(std::span(mine)));
  std::ranges::sort(gpus);
  if (std::ranges::adjacent_find(gpus) == gpus.end())
    return {make_nccl_transport(host), true, "NCCL"};
  why = "two ranks share a GPU";
#endif
  return {make_staged_transport(host, std::move(copies)), false,
          "MPI through host memory (" + why + ")"};
}

}  // namespace roundhouse
