// How the device memories of a group of ranks are connected.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/staged_transport.h"

namespace roundhouse {

struct DeviceTransport {
  std::unique_ptr<Transport> transport;
  bool direct;              // from device to device: NCCL
  std::string description;  // "NCCL", or "MPI through host memory (two ranks share a GPU)"
};

// Collective over `host`, which must outlive it. NCCL where every rank has a GPU of its own and NCCL is built in, else staged through
// host memory; the same on every rank.
DeviceTransport make_device_transport(Communicator& host, DeviceCopies copies);

}  // namespace roundhouse
