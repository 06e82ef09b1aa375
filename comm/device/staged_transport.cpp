#include "comm/device/staged_transport.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/exit_code.h"
#include "comm/host/backoff.h"
#include "comm/launcher.h"
#include "comm/watchdog.h"

namespace roundhouse {
namespace {

// The messages to or from one rank that are not over, in the order of their calls; the first is under way.
class Lane {
 public:
  struct Message {
    std::span<std::byte> device;        // not written to where it is sent
    std::size_t at = 0;                 // bytes that are over
    std::shared_ptr<std::size_t> open;  // messages of the ticket that are not over
  };

  Lane(Communicator& host, const DeviceCopies& copies, std::size_t piece_bytes, int peer,
       bool sends)
      : host_(host), copies_(copies), piece_bytes_(piece_bytes), peer_(peer), sends_(sends) {}

  void push(Message message) {
    messages_.push_back(std::move(message));
    progress();
  }

  // Moves on as far as it can without waiting. True if a piece has ended.
  bool progress() {
    bool moved = false;
    while (!messages_.empty()) {
      Message& message = messages_.front();
      if (!piece_) start_piece(message);
      if (!piece_->done()) break;
      moved = true;
      piece_->wait();  // done, and lets it say what went wrong
      piece_.reset();
      if (!sends_) copies_.upload(staging_, piece_of(message));
      message.at += staging_.size();
      // An empty message is one empty piece, so that the other side's size is checked there too.
      if (message.at < message.device.size()) continue;
      --*message.open;
      messages_.pop_front();
    }
    return moved;
  }

 private:
  std::span<std::byte> piece_of(const Message& message) const {
    return message.device.subspan(message.at,
                                  std::min(piece_bytes_, message.device.size() - message.at));
  }

  void start_piece(Message& message) {
    const std::span<std::byte> piece = piece_of(message);
    staging_.resize(piece.size());
    if (sends_) {
      copies_.download(piece, staging_);
      const Send send{staging_, peer_};
      piece_ = host_.start({&send, 1}, {});
    } else {
      const Receive receive{staging_, peer_};
      piece_ = host_.start({}, {&receive, 1});
    }
  }

  Communicator& host_;
  const DeviceCopies& copies_;
  std::size_t piece_bytes_;
  int peer_;
  bool sends_;
  std::deque<Message> messages_;
  std::vector<std::byte> staging_;
  std::unique_ptr<Ticket> piece_;  // before staging_ goes
};

class StagedTransport final : public Transport {
 public:
  StagedTransport(Communicator& host, DeviceCopies copies, std::size_t piece_bytes)
      : host_(host.split(0, host.rank())), copies_(std::move(copies)), piece_bytes_(piece_bytes) {}

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override;

  void broadcast(std::span<std::byte> data, int root) override {
    for (std::size_t at = 0; at < data.size(); at += piece_bytes_) {
      const auto piece = data.subspan(at, std::min(piece_bytes_, data.size() - at));
      std::vector<std::byte> staging(piece.size());
      if (rank() == root) copies_.download(piece, staging);
      host_->broadcast(staging, root);
      if (rank() != root) copies_.upload(staging, piece);
    }
  }

  bool progress() {
    bool moved = false;
    for (auto& [key, lane] : lanes_) moved |= lane.progress();
    return moved;
  }
  std::size_t piece_bytes() const { return piece_bytes_; }

 private:
  Lane& lane(int peer, bool sends) {
    require(peer >= 0 && peer < size() && peer != rank(),
            "a message between devices goes to another rank of the communicator");
    return lanes_.try_emplace({peer, sends}, *host_, copies_, piece_bytes_, peer, sends)
        .first->second;
  }

  std::unique_ptr<Communicator> host_;  // its own, so that pieces meet nobody else's messages
  DeviceCopies copies_;
  std::size_t piece_bytes_;
  std::map<std::pair<int, bool>, Lane> lanes_;
};

class StagedTicket final : public Ticket {
 public:
  StagedTicket(StagedTransport& transport, std::shared_ptr<std::size_t> open)
      : transport_(transport), open_(std::move(open)) {}
  ~StagedTicket() override {
    if (*open_ == 0 || std::uncaught_exceptions() > 0) return;
    try {
      wait();
    } catch (const std::exception& e) {
      abort_job(kExitFailed, e.what());  // nobody is left to tell, and the data did not arrive
    }
  }

  void wait() override {
    Watchdog* const watchdog = Watchdog::of_this_thread();
    const Watchdog::Waiting waiting(watchdog);
    Backoff backoff(transport_.piece_bytes());
    while (*open_ > 0) {
      if (transport_.progress()) {
        backoff.restart();
        if (watchdog) watchdog->tick();
      }
      backoff.pause();
    }
  }
  bool done() override {
    if (*open_ > 0) transport_.progress();
    return *open_ == 0;
  }

 private:
  StagedTransport& transport_;
  std::shared_ptr<std::size_t> open_;
};

std::unique_ptr<Ticket> StagedTransport::start(std::span<const Send> sends,
                                               std::span<const Receive> receives) {
  auto open = std::make_shared<std::size_t>(sends.size() + receives.size());
  auto ticket = std::make_unique<StagedTicket>(*this, open);
  for (const Receive& receive : receives) {
    lane(receive.from, false).push({.device = receive.data, .open = open});
  }
  for (const Send& send : sends) {
    // The lane of a send only reads.
    const std::span<std::byte> data(const_cast<std::byte*>(send.data.data()), send.data.size());
    lane(send.to, true).push({.device = data, .open = open});
  }
  return ticket;
}

}  // namespace

std::unique_ptr<Transport> make_staged_transport(Communicator& host, DeviceCopies copies,
                                                 std::size_t piece_bytes) {
  require(piece_bytes > 0, "a staged transport moves pieces of at least a byte");
  return std::make_unique<StagedTransport>(host, std::move(copies), piece_bytes);
}

}  // namespace roundhouse
