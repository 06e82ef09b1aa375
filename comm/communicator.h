// How ranks talk. Knows bytes and ranks, nothing of models. A communicator only moves bytes: every floating-point sum is
// ours, in a fixed order (comm/tree_sum.h), so that results do not depend on the transport or the number of ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace roundhouse {

struct Send {
  std::span<const std::byte> data;
  int to;
};
struct Receive {
  std::span<std::byte> data;
  int from;
};

// A group of transfers under way. The spans must live until wait() returns or done() was true.
class Ticket {
 public:
  virtual ~Ticket() = default;
  virtual void wait() = 0;
  virtual bool done() = 0;  // also lets the transport make progress
};

// Moves bytes between the memories of a group of ranks: host memory (every Communicator), or the memory of one device a rank
// (comm/device/device_transport.h). A device's queue does not know of messages: Memory::sync() must lie between what was queued
// for a span (freeing its last owner included) and start() or broadcast(); work queued after wait() finds what arrived.
class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Starts all transfers of a call at once; none of them waits for another. Between two ranks messages match in the order of
  // their calls and within a call in the order given; both sides must agree on the size and on what lies in one call.
  //
  // Between host memories each transfer progresses by itself, and a rank may send to itself. Between device memories calls,
  // broadcasts among them, take turns: nothing of a call need move before all calls before it are over, and start() itself
  // may wait for the other ranks' calls. So the calls of all ranks must come to an end if each were waited for before the next:
  // what must move together, the two directions of an exchange or a ring, is one call on every rank. Nor do
  // two transports of one device progress side by side: a call that has not met its other half may hold up the other's calls.
  [[nodiscard]] virtual std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                                      std::span<const Receive> receives) = 0;

  // Collective, like all of Communicator: every rank makes the same calls in the same order.
  virtual void broadcast(std::span<std::byte> data, int root) = 0;
};

// The same between host memories, and collectives on small values.
class Communicator : public Transport {
 public:
  // At root: each rank's bytes by rank (sizes may differ). Elsewhere: empty.
  virtual std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine, int root) = 0;
  virtual std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine) = 0;
  // Exact under any order, so these may be the library's.
  virtual std::int64_t all_reduce_max(std::int64_t value) = 0;
  virtual std::int64_t all_reduce_min(std::int64_t value) = 0;
  virtual std::int64_t all_reduce_sum(std::int64_t value) = 0;
  virtual void barrier() = 0;

  // Ranks with the same color form a new group, ordered by (key, rank). Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
};

}  // namespace roundhouse
