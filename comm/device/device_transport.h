// How the device memories of a group of ranks are connected.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/device/device_group.h"
#include "comm/device/staged_transport.h"

namespace roundhouse {

// What all transports of a job are made of.
struct DeviceLink {
  bool direct;              // from device to device: NCCL
  std::string description;  // "NCCL", or "MPI through host memory (two ranks share a GPU)"
};

// Collective over all ranks of the job, and the same on each: NCCL where every rank has a GPU of its own and NCCL is built in, else
// through host memory.
DeviceLink choose_device_link(Communicator& world);

// Collective over `host`, which must outlive it. NCCL: one communicator, connected when this returns.
std::unique_ptr<Transport> make_device_transport(const DeviceLink& link, Communicator& host,
                                                 const DeviceGroup& group, DeviceCopies copies);

}  // namespace roundhouse
