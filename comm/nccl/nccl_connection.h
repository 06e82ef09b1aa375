// One NCCL communicator and its CUDA stream, on the calling thread's current device; all calls from one thread.
//
// Each operation is one NCCL group, so one kernel. Kernels of a connection run one after another, and a kernel ends when all
// its messages have met their other half, which must be at the head of its own rank's stream by then.
//
// NCCL itself never times out. Connecting and launching have a deadline here. As long as anything is under way, errors of all
// connections of the process are polled: the first one aborts them all, since a kernel that never ends keeps the device from
// everybody, and throws. A rank that dies without an error is the watchdog's matter (comm/watchdog.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "comm/communicator.h"
#include "comm/device/device_group.h"

namespace roundhouse {

class NcclConnection {
 public:
  // Collective over `host`, of more than one rank. Meets the other ranks, connects, and sends a byte over every way that will
  // be used: NCCL makes the connection of a pair at its first message, and later there is no deadline to see it fail.
  NcclConnection(Communicator& host, const DeviceGroup& group);
  // Collective. While an exception unwinds: aborts all connections of the process instead.
  ~NcclConnection();
  NcclConnection(const NcclConnection&) = delete;
  NcclConnection& operator=(const NcclConnection&) = delete;

  // Both return an operation for over(), once its kernel is on the stream. No span is empty.
  std::uint64_t exchange(std::span<const Send> sends, std::span<const Receive> receives);
  std::uint64_t broadcast(std::span<std::byte> data, int root);

  // Whether an operation, and so all before it, has ended. Throws Error where something has gone wrong on any connection.
  bool over(std::uint64_t operation);
  bool aborted() const;

  struct State;

 private:
  std::unique_ptr<State> state_;
};

// What tells the calling thread's current GPU from every other one, as NCCL does: its host and its place on the bus. Instances of
// one GPU (MIG) are the same here.
std::string current_gpu();

}  // namespace roundhouse
