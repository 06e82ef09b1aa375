// Device memory to device memory over NCCL: NVLink within a node, InfiniBand with GPUDirect between nodes, where there are.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/device/device_group.h"

namespace roundhouse {

// Collective over `host`, which is needed for no longer than this takes. One NCCL communicator where there is more than one rank,
// else none. No two ranks may use the same GPU (NCCL before 2.30 refuses it, later versions may hang). Messages go to
// and from `group.peers` only. Throws Error where not all ranks are connected within the deadline.
std::unique_ptr<Transport> make_nccl_transport(Communicator& host, const DeviceGroup& group);

}  // namespace roundhouse
