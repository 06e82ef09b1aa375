#include "comm/device/device_transport.h"

#include <utility>

#if ROUNDHOUSE_CUDA
#include <algorithm>

#include "comm/nccl/nccl_connection.h"
#include "comm/nccl/nccl_transport.h"
#endif

namespace roundhouse {

DeviceLink choose_device_link([[maybe_unused]] Communicator& world) {
  std::string why = "built without NCCL";
#if ROUNDHOUSE_CUDA
  const std::string mine = current_gpu();
  std::vector<std::vector<std::byte>> gpus = world.all_gather(std::as_bytes(std::span(mine)));
  std::ranges::sort(gpus);
  if (std::ranges::adjacent_find(gpus) == gpus.end()) return {true, "NCCL"};
  why = "two ranks share a GPU, or instances of one";
#endif
  return {false, "MPI through host memory (" + why + ")"};
}

std::unique_ptr<Transport> make_device_transport([[maybe_unused]] const DeviceLink& link,
                                                 Communicator& host,
                                                 [[maybe_unused]] const DeviceGroup& group,
                                                 DeviceCopies copies) {
#if ROUNDHOUSE_CUDA
  if (link.direct) return make_nccl_transport(host, group);
#endif
  return make_staged_transport(host, std::move(copies));
}

}  // namespace roundhouse
