// One rank alone. Messages go from the rank to itself; a wait that nothing can end is an Error at once, where MPI would
// wait for ever.
#include <algorithm>
#include <deque>
#include <string>
#include <utility>

#include "base/error.h"
#include "comm/launcher.h"

namespace roundhouse {
namespace {

// Transfers that have not met their other half, in the order of their calls. As with a long message under MPI, a send
// is done only when its receive has begun. The spans are the callers'; a ticket takes its own out when it goes.
struct Mailbox {
  template <class Bytes>
  struct Entry {
    std::uint64_t ticket;
    Bytes data;
  };
  std::uint64_t tickets = 0;
  std::deque<Entry<std::span<const std::byte>>> sends;
  std::deque<Entry<std::span<std::byte>>> receives;

  void match() {
    while (!sends.empty() && !receives.empty()) {
      const auto from = sends.front().data;
      const auto to = receives.front().data;
      if (from.size() != to.size()) {
        throw Error("a message of " + std::to_string(from.size()) + " bytes meets a receive of " +
                    std::to_string(to.size()) + " bytes, rank 0 to itself");
      }
      std::ranges::copy(from, to.begin());
      sends.pop_front();
      receives.pop_front();
    }
  }
  bool holds(std::uint64_t ticket) const {
    const auto is_mine = [ticket](const auto& entry) { return entry.ticket == ticket; };
    return std::ranges::any_of(sends, is_mine) || std::ranges::any_of(receives, is_mine);
  }
  void withdraw(std::uint64_t ticket) {
    const auto is_mine = [ticket](const auto& entry) { return entry.ticket == ticket; };
    std::erase_if(sends, is_mine);
    std::erase_if(receives, is_mine);
  }
};

class LocalTicket final : public Ticket {
 public:
  LocalTicket(std::shared_ptr<Mailbox> mailbox, std::uint64_t id)
      : mailbox_(std::move(mailbox)), id_(id) {}
  ~LocalTicket() override { mailbox_->withdraw(id_); }

  void wait() override {
    if (!done()) throw Error("rank 0 waits for a message to itself whose other half was not started");
  }
  bool done() override { return !mailbox_->holds(id_); }

 private:
  std::shared_ptr<Mailbox> mailbox_;  // shared with the communicator, which may go first
  std::uint64_t id_;
};

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    for (const Send& send : sends) require(send.to == 0, "send to a rank outside the communicator");
    for (const Receive& receive : receives) {
      require(receive.from == 0, "receive from a rank outside the communicator");
    }
    auto ticket = std::make_unique<LocalTicket>(mailbox_, ++mailbox_->tickets);
    for (const Send& send : sends) mailbox_->sends.push_back({mailbox_->tickets, send.data});
    for (const Receive& receive : receives) {
      mailbox_->receives.push_back({mailbox_->tickets, receive.data});
    }
    mailbox_->match();
    return ticket;
  }

  void broadcast(std::span<std::byte>, int root) override { require(root == 0, "no such root"); }
  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine, int root) override {
    require(root == 0, "no such root");
    return all_gather(mine);
  }
  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine) override {
    return {{mine.begin(), mine.end()}};
  }
  std::int64_t all_reduce_max(std::int64_t value) override { return value; }
  std::int64_t all_reduce_min(std::int64_t value) override { return value; }
  std::int64_t all_reduce_sum(std::int64_t value) override { return value; }
  void barrier() override {}
  std::unique_ptr<Communicator> split(int color, int) override {
    require(color >= 0, "split: a color is not negative");
    return make_local_communicator();
  }

 private:
  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() {
  return std::make_unique<LocalCommunicator>();
}

}  // namespace roundhouse
