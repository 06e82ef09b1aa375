#include "comm/nccl/nccl_transport.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "base/error.h"
#include "base/exit_code.h"
#include "comm/host/backoff.h"
#include "comm/launcher.h"
#include "comm/nccl/nccl_connection.h"
#include "comm/watchdog.h"

namespace roundhouse {
namespace {

void wait_for(NcclConnection& connection, std::uint64_t operation) {
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  for (Backoff backoff(0); !connection.over(operation); backoff.pause()) {
  }
}

class NcclTicket final : public Ticket {
 public:
  // `connection` may be null where nothing moves: operation 0.
  NcclTicket(NcclConnection* connection, std::uint64_t operation)
      : connection_(connection), operation_(operation) {}
  ~NcclTicket() override {
    if (operation_ == 0 || std::uncaught_exceptions() > 0 || connection_->aborted()) return;
    try {
      wait();
    } catch (const std::exception& e) {
      abort_job(kExitFailed, e.what());  // nobody is left to tell, and the data did not arrive
    }
  }
  void wait() override {
    if (operation_ > 0) wait_for(*connection_, operation_);
  }
  bool done() override { return operation_ == 0 || connection_->over(operation_); }

 private:
  NcclConnection* connection_;
  std::uint64_t operation_;
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(Communicator& host, const DeviceGroup& group)
      : rank_(host.rank()), size_(host.size()), peers_(group.peers) {
    for (const int peer : peers_) {
      require(peer >= 0 && peer < size_ && peer != rank_, "NCCL: no such peer");
    }
    if (size_ > 1) connection_ = std::make_unique<NcclConnection>(host, group);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    // An empty message does not travel: both ends know its size.
    std::vector<Send> full_sends;
    std::vector<Receive> full_receives;
    for (const Send& send : sends) {
      check_peer(send.to);
      if (!send.data.empty()) full_sends.push_back(send);
    }
    for (const Receive& receive : receives) {
      check_peer(receive.from);
      if (!receive.data.empty()) full_receives.push_back(receive);
    }
    const bool moves = !full_sends.empty() || !full_receives.empty();
    return std::make_unique<NcclTicket>(
        connection_.get(), moves ? connection_->exchange(full_sends, full_receives) : 0);
  }

  void broadcast(std::span<std::byte> data, int root) override {
    require(root >= 0 && root < size_, "a broadcast between devices from a rank that is not there");
    if (size_ == 1 || data.empty()) return;
    wait_for(*connection_, connection_->broadcast(data, root));
  }

 private:
  void check_peer(int peer) const {
    require(std::ranges::find(peers_, peer) != peers_.end(),
            "a message between devices goes to another rank that it was connected with");
  }

  int rank_;
  int size_;
  std::vector<int> peers_;
  std::unique_ptr<NcclConnection> connection_;  // null on one rank
};

}  // namespace

std::unique_ptr<Transport> make_nccl_transport(Communicator& host, const DeviceGroup& group) {
  return std::make_unique<NcclTransport>(host, group);
}

}  // namespace roundhouse
