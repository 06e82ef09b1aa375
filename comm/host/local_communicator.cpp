// One rank alone.
#include <utility>

#include "base/error.h"
#include "comm/host/self_messages.h"
#include "comm/launcher.h"

namespace roundhouse {
namespace {

class LocalTicket final : public Ticket {
 public:
  explicit LocalTicket(std::shared_ptr<SelfMessages> messages)
      : messages_(std::move(messages)), id_(messages_->new_ticket()) {}
  // Nothing to wait for: what is not done now can only be done by calls that this rank has not made
  // yet.
  ~LocalTicket() override { messages_->withdraw(id_); }

  std::uint64_t id() const { return id_; }
  void wait() override { messages_->wait(id_); }
  bool done() override { return messages_->done(id_); }

 private:
  std::shared_ptr<SelfMessages> messages_;  // shared with the communicator, which may go first
  std::uint64_t id_;
};

class LocalCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    auto ticket = std::make_unique<LocalTicket>(messages_);
    for (const Receive& receive : receives) {
      require(receive.from == 0, "receive from a rank outside the communicator");
      messages_->receive(ticket->id(), receive.data);
    }
    for (const Send& send : sends) {
      require(send.to == 0, "send to a rank outside the communicator");
      messages_->send(ticket->id(), send.data);
    }
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
  std::shared_ptr<SelfMessages> messages_ = std::make_shared<SelfMessages>(0);
};

}  // namespace

std::unique_ptr<Communicator> make_local_communicator() {
  return std::make_unique<LocalCommunicator>();
}

}  // namespace roundhouse
