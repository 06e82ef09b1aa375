// Device memory to device memory over NCCL: NVLink within a node, InfiniBand with GPUDirect between nodes, where there are.
//
// NCCL only moves bytes. Ranks get to know each other over the host communicator; each ordered pair of ranks that exchange
// messages has a NCCL communicator and a CUDA stream of its own (a lane), made at the first message: what is on its way in
// one direction, or to one rank, never waits for anything else. Broadcasts have one over all ranks.
//
// NCCL itself never times out. Making a connection has a deadline here; after that errors are polled, and a rank that dies is
// the watchdog's matter (comm/watchdog.h). An error is thrown, communicators are left as they are and the job ends: NCCL's
// own abort may hang.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace roundhouse {

// Collective over `host`, which must outlive it. For the calling thread's current CUDA device; all calls from that thread. No two
// ranks may use the same GPU (NCCL before 2.30 refuses it, later versions may hang).
std::unique_ptr<Transport> make_nccl_transport(
    Communicator& host, std::chrono::seconds deadline = std::chrono::seconds(300));

// What tells the calling thread's current GPU from every other one: its UUID.
std::string current_gpu();

}  // namespace roundhouse
