#include "comm/nccl_transport.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <utility>
#include <vector>

#include "base/error.h"
#include "comm/backoff.h"

namespace roundhouse {
namespace {

using Clock = std::chrono::steady_clock;
using UniqueIdBytes = std::array<std::byte, sizeof(ncclUniqueId)>;

void check_cuda(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  throw Error("CUDA: " + std::string(cudaGetErrorString(status)) + ", while " + doing);
}

void check_nccl(ncclResult_t status, ncclComm_t comm, const std::string& doing) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  const char* const detail = ncclGetLastError(comm);
  throw Error("NCCL: " + std::string(ncclGetErrorString(status)) + ", while " + doing +
              (detail && *detail ? " (" + std::string(detail) + ")" : ""));
}

UniqueIdBytes new_unique_id() {
  ncclUniqueId id;
  check_nccl(ncclGetUniqueId(&id), nullptr, "making an id for a connection");
  UniqueIdBytes bytes;
  std::memcpy(bytes.data(), &id, sizeof id);
  return bytes;
}

// One NCCL communicator that does not block, with a stream of its own.
class Connection {
 public:
  explicit Connection(std::string what) : what_(std::move(what)) {
    check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  }
  // While an exception unwinds nothing is waited for: the peer may never come.
  ~Connection() {
    if (std::uncaught_exceptions() > 0) return;
    if (comm_ != nullptr && ncclCommFinalize(comm_) != ncclInvalidArgument) {
      const auto end = Clock::now() + std::chrono::seconds(10);
      while (status() == ncclInProgress && Clock::now() < end) sched_yield();
      ncclCommDestroy(comm_);
    }
    cudaStreamDestroy(stream_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void connect(const UniqueIdBytes& bytes, int rank, int ranks, std::chrono::seconds deadline) {
    ncclUniqueId id;
    std::memcpy(&id, bytes.data(), sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    config.maxCTAs = 8;  // multiprocessors that a transfer may take from kernels that run beside it
    allowed_ = deadline;
    deadline_ = Clock::now() + deadline;
    check_nccl(ncclCommInitRankConfig(&comm_, ranks, id, rank, &config), nullptr, what_);
  }

  // Whether what was asked of NCCL last is queued on the stream, so that the next may be asked.
  bool ready() {
    const ncclResult_t now = status();
    check_nccl(now, comm_, what_);
    if (now == ncclInProgress) {
      if (Clock::now() > deadline_) {
        throw Error("NCCL: nothing came of " + what_ + " in " + std::to_string(allowed_.count()) +
                    " s; NCCL_DEBUG=INFO tells more");
      }
      return false;
    }
    deadline_ = Clock::time_point::max();  // connected: from here on peers may take their time
    return true;
  }

  void check(ncclResult_t asked) { check_nccl(asked, comm_, what_); }
  ncclComm_t comm() const { return comm_; }
  cudaStream_t stream() const { return stream_; }

 private:
  ncclResult_t status() const {
    ncclResult_t now = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &now);
    return asked == ncclSuccess ? now : asked;
  }

  std::string what_;
  ncclComm_t comm_ = nullptr;
  cudaStream_t stream_ = nullptr;
  std::chrono::seconds allowed_{0};
  Clock::time_point deadline_ = Clock::time_point::max();
};

// A mark on a stream.
class Mark {
 public:
  explicit Mark(cudaStream_t stream) {
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event");
    check_cuda(cudaEventRecord(event_, stream), "recording an event");
  }
  ~Mark() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Mark(Mark&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Mark& operator=(Mark&&) = delete;

  bool passed() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status == cudaErrorNotReady) return false;
    check_cuda(status, "waiting for a transfer");
    return true;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

// How two ranks agree to connect: one id and one answer for each ordered pair, on communicators of their own, so that the
// two directions of a pair do not meet each other's.
struct Host {
  std::unique_ptr<Communicator> ids;
  std::unique_ptr<Communicator> answers;
};

// Messages that a ticket still waits for.
using Open = std::shared_ptr<std::size_t>;

// All messages from one rank to another, in the order of their calls; this is one end.
class Lane {
 public:
  Lane(const Host& host, int peer, bool sends, std::chrono::seconds deadline)
      : host_(host),
        peer_(peer),
        sends_(sends),
        deadline_(deadline),
        connection_("connecting rank " + std::to_string(sends ? host.ids->rank() : peer) +
                    " to rank " + std::to_string(sends ? peer : host.ids->rank())) {
    // The sender makes the id and the receiver answers, so that neither begins to connect before the other is there.
    if (sends) {
      id_ = new_unique_id();
      const Send send{id_, peer};
      const Receive receive{answer_, peer};
      id_ticket_ = host.ids->start({&send, 1}, {});
      answer_ticket_ = host.answers->start({}, {&receive, 1});
    } else {
      const Receive receive{id_, peer};
      id_ticket_ = host.ids->start({}, {&receive, 1});
    }
  }

  void push(std::span<std::byte> data, const Open& open) {
    waiting_.push_back({data, open});
    progress();
  }

  // Moves on as far as it can without waiting.
  void progress() {
    if (!connected_ && !greet()) return;
    while (!waiting_.empty() && connection_.ready()) {
      if (asked_) {
        // NCCL has put the message on the stream: what marks its end may follow.
        moving_.push_back({Mark(connection_.stream()), std::move(waiting_.front().open)});
        waiting_.pop_front();
        asked_ = false;
        continue;
      }
      const auto data = waiting_.front().data;
      const int other_end = sends_ ? 1 : 0;
      connection_.check(sends_ ? ncclSend(data.data(), data.size(), ncclInt8, other_end,
                                          connection_.comm(), connection_.stream())
                               : ncclRecv(data.data(), data.size(), ncclInt8, other_end,
                                          connection_.comm(), connection_.stream()));
      asked_ = true;
    }
    while (!moving_.empty() && moving_.front().mark.passed()) {
      --*moving_.front().open;
      moving_.pop_front();
    }
  }

 private:
  struct Waiting {
    std::span<std::byte> data;
    Open open;
  };
  struct Moving {
    Mark mark;
    Open open;
  };

  // True once NCCL has been asked to connect.
  bool greet() {
    if (!id_ticket_->done()) return false;
    if (!answer_ticket_) {
      const Send send{answer_, peer_};
      answer_ticket_ = host_.answers->start({&send, 1}, {});
    }
    if (sends_ && !answer_ticket_->done()) return false;
    connection_.connect(id_, sends_ ? 0 : 1, 2, deadline_);
    connected_ = true;
    return true;
  }

  const Host& host_;
  int peer_;
  bool sends_;
  std::chrono::seconds deadline_;
  UniqueIdBytes id_{};
  std::array<std::byte, 1> answer_{};
  std::unique_ptr<Ticket> id_ticket_;
  std::unique_ptr<Ticket> answer_ticket_;
  bool connected_ = false;
  Connection connection_;
  std::deque<Waiting> waiting_;  // the first may have been asked for
  bool asked_ = false;
  std::deque<Moving> moving_;  // on the stream
};

class NcclTransport final : public Transport {
 public:
  NcclTransport(Communicator& host, std::chrono::seconds deadline)
      : host_{host.split(0, host.rank()), host.split(0, host.rank())},
        deadline_(deadline),
        all_("connecting all ranks") {
    if (size() == 1) return;
    UniqueIdBytes id{};
    if (rank() == 0) id = new_unique_id();
    host_.ids->broadcast(id, 0);
    all_.connect(id, rank(), size(), deadline);
    wait_until([&] { return all_.ready(); });
    host_.ids->barrier();
  }

  int rank() const override { return host_.ids->rank(); }
  int size() const override { return host_.ids->size(); }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override;

  void broadcast(std::span<std::byte> data, int root) override {
    if (size() == 1 || data.empty()) return;
    all_.check(ncclBroadcast(data.data(), data.data(), data.size(), ncclInt8, root, all_.comm(),
                             all_.stream()));
    wait_until([&] { return all_.ready(); });
    const Mark end(all_.stream());
    wait_until([&] {
      (void)all_.ready();  // throws where something went wrong
      return end.passed();
    });
  }

  void progress() {
    for (auto& [key, lane] : lanes_) lane.progress();
  }

  template <class Done>
  void wait_until(const Done& done) {
    Backoff backoff(0);
    while (!done()) {
      progress();  // others may wait for what this rank sends
      backoff.pause();
    }
  }

 private:
  void push(int peer, bool sends, std::span<std::byte> data, const Open& open) {
    require(peer >= 0 && peer < size() && peer != rank(),
            "a message between devices goes to another rank of the communicator");
    // Nothing to move: both ends know the size.
    if (data.empty()) {
      --*open;
    } else {
      lanes_.try_emplace({peer, sends}, host_, peer, sends, deadline_)
          .first->second.push(data, open);
    }
  }

  Host host_;
  std::chrono::seconds deadline_;
  Connection all_;
  std::map<std::pair<int, bool>, Lane> lanes_;
};

class NcclTicket final : public Ticket {
 public:
  NcclTicket(NcclTransport& transport, Open open) : transport_(transport), open_(std::move(open)) {}
  ~NcclTicket() override {
    if (std::uncaught_exceptions() == 0) wait();
  }
  void wait() override {
    transport_.wait_until([this] { return done(); });
  }
  bool done() override {
    if (*open_ > 0) transport_.progress();
    return *open_ == 0;
  }

 private:
  NcclTransport& transport_;
  Open open_;
};

std::unique_ptr<Ticket> NcclTransport::start(std::span<const Send> sends,
                                             std::span<const Receive> receives) {
  auto open = std::make_shared<std::size_t>(sends.size() + receives.size());
  auto ticket = std::make_unique<NcclTicket>(*this, open);
  for (const Receive& receive : receives) push(receive.from, false, receive.data, open);
  for (const Send& send : sends) {
    // A lane that sends only reads.
    const std::span<std::byte> data(const_cast<std::byte*>(send.data.data()), send.data.size());
    push(send.to, true, data, open);
  }
  return ticket;
}

}  // namespace

std::unique_ptr<Transport> make_nccl_transport(Communicator& host, std::chrono::seconds deadline) {
  return std::make_unique<NcclTransport>(host, deadline);
}

std::string current_gpu() {
  int device = 0;
  cudaDeviceProp properties{};
  check_cuda(cudaGetDevice(&device), "asking for the current device");
  check_cuda(cudaGetDeviceProperties(&properties, device), "asking for a device's properties");
  return {properties.uuid.bytes, sizeof properties.uuid.bytes};
}

}  // namespace roundhouse
