// Messages of a rank to itself, for communicators of host memory. (Open MPI 4.1 neither reports nor
// always survives a message to oneself that is longer than its receive.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>

namespace roundhouse {

// Transfers that have not met their other half, in the order of their calls. As with a long message
// between ranks, a send is done only when its receive has begun. A rank waiting for itself waits
// for ever, so wait() throws instead.
class SelfMessages {
 public:
  explicit SelfMessages(int rank) : rank_(rank) {}

  std::uint64_t new_ticket() { return ++tickets_; }
  // The spans must live until done(ticket) or withdraw(ticket). Throw Error where two halves differ
  // in size.
  void send(std::uint64_t ticket, std::span<const std::byte> data);
  void receive(std::uint64_t ticket, std::span<std::byte> data);

  bool done(std::uint64_t ticket) const;
  void wait(std::uint64_t ticket) const;  // throws Error unless done
  void withdraw(std::uint64_t ticket);    // forgets what has not met its other half

 private:
  template <class Bytes>
  struct Half {
    std::uint64_t ticket;
    Bytes data;
  };
  void match();

  int rank_;
  std::uint64_t tickets_ = 0;
  std::deque<Half<std::span<const std::byte>>> sends_;
  std::deque<Half<std::span<std::byte>>> receives_;
};

}  // namespace roundhouse
