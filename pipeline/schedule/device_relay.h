// Host memory of one rank to host memory of another by way of their GPUs: over NVLink and GPUDirect it is faster than a
// network stack between the hosts. In pieces of a fixed size, two of them under way at a time.
//
// A transfer that is under way may keep a device from all others (comm/communicator.h). So no piece is sent before the receiver
// says, from host to host, that it is in receive_relayed(): a piece never waits for what its receiver computes.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <span>

#include "comm/communicator.h"
#include "kernels/memory.h"

namespace roundhouse {

inline constexpr std::int64_t kRelayPieceBytes = 32 << 20;

// Both ends' way: the same ranks on the hosts and, from memory to memory, on the devices.
struct RelayLink {
  Communicator& hosts;
  Transport& devices;
  Memory& memory;
};

// The sending end; what add() names must live until done() was true.
class RelaySender {
 public:
  RelaySender(const RelayLink& link, int to, std::int64_t piece_bytes = kRelayPieceBytes);

  void add(std::span<const std::byte> host);
  bool done();  // also moves on as far as it can without waiting for the other rank
  void wait();

 private:
  struct Slot {
    Tensor buffer;
    std::unique_ptr<Ticket> ticket;
  };

  RelayLink link_;
  int to_;
  std::byte ready_{};                     // the receiver's word, of no meaning
  std::unique_ptr<Ticket> ready_ticket_;  // null once it has come
  std::deque<std::span<const std::byte>> pieces_;
  std::int64_t piece_bytes_;
  std::array<Slot, 2> slots_;
};

// The receiving end: returns when all is there. `host`: what the sender adds, in the same order and of the same sizes.
void receive_relayed(const RelayLink& link, int from, std::span<const std::span<std::byte>> host,
                     std::int64_t piece_bytes = kRelayPieceBytes);

}  // namespace roundhouse
