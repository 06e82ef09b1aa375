#include "comm/host/mpi_communicator.h"

#include <fmt/format.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/exit_code.h"
#include "comm/host/backoff.h"
#include "comm/host/mpi_error.h"
#include "comm/host/self_messages.h"
#include "comm/launcher.h"
#include "comm/watchdog.h"

namespace roundhouse {

void throw_mpi_error(int status, const std::string& doing) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error("MPI: " + std::string(text, static_cast<std::size_t>(length)) + ", while " + doing);
}

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMessageTag = 0;  // start()
constexpr int kGatherTag = 1;   // the payload of gathers, which must not match a pending start()

struct Transfer {
  bool receives;
  int peer;
  int bytes;  // of this piece
};

std::string describe(const Transfer& transfer, int rank) {
  return fmt::format("rank {}{}{}{}{}", rank, transfer.receives ? " receives " : " sends ",
                     transfer.bytes, transfer.receives ? " bytes from rank " : " bytes to rank ",
                     transfer.peer);
}

class MpiTicket final : public Ticket {
 public:
  MpiTicket(MPI_Comm comm, int rank, int size, std::size_t piece_bytes,
            std::shared_ptr<SelfMessages> self)
      : comm_(comm),
        rank_(rank),
        size_(size),
        piece_bytes_(piece_bytes),
        self_(std::move(self)),
        self_ticket_(self_->new_ticket()) {}

  ~MpiTicket() override {
    self_->withdraw(self_ticket_);  // can only be done by calls that this rank has not made yet
    if (pending_ == 0) return;
    if (std::uncaught_exceptions() > 0) {
      abandon();
      return;
    }
    try {
      wait();
    } catch (const std::exception& e) {
      abort_job(kExitFailed, e.what());  // nobody is left to tell, and the data did not arrive
    }
  }

  void send(std::span<const std::byte> data, int to, int tag) {
    require(to >= 0 && to < size_, "send to a rank outside the communicator");
    if (to == rank_) {
      self_->send(self_ticket_, data);
      return;
    }
    // An empty message is one empty piece, so that the other side's size is checked there too.
    std::size_t at = 0;
    do {
      const int bytes = piece_at(at, data.size());
      MPI_Request request = MPI_REQUEST_NULL;
      add({false, to, bytes}, request,
          MPI_Isend(data.data() + at, bytes, MPI_BYTE, to, tag, comm_, &request));
      at += static_cast<std::size_t>(bytes);
    } while (at < data.size());
  }

  void receive(std::span<std::byte> data, int from, int tag) {
    require(from >= 0 && from < size_, "receive from a rank outside the communicator");
    if (from == rank_) {
      self_->receive(self_ticket_, data);
      return;
    }
    std::size_t at = 0;
    do {
      const int bytes = piece_at(at, data.size());
      MPI_Request request = MPI_REQUEST_NULL;
      add({true, from, bytes}, request,
          MPI_Irecv(data.data() + at, bytes, MPI_BYTE, from, tag, comm_, &request));
      at += static_cast<std::size_t>(bytes);
    } while (at < data.size());
  }

  void wait() override {
    self_->wait(self_ticket_);
    Watchdog* const watchdog = Watchdog::of_this_thread();
    const Watchdog::Waiting waiting(watchdog);
    Backoff backoff(longest_);
    for (std::size_t before = pending_; !done(); before = pending_) {
      if (pending_ < before) {
        backoff.restart();
        if (watchdog) watchdog->tick();
      }
      backoff.pause();
    }
  }

  bool done() override { return requests_are_done() && self_->done(self_ticket_); }

 private:
  bool requests_are_done() {
    if (pending_ == 0) return true;
    int over = 0;
    const int status = MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &over,
                                    indices_.data(), statuses_.data());
    if (status != MPI_ERR_IN_STATUS) check_mpi(status, "testing point-to-point transfers");
    for (std::size_t i = 0; i < static_cast<std::size_t>(over); ++i) {
      const Transfer& transfer = transfers_[indices_[i]];
      if (status != MPI_SUCCESS && statuses_[i].MPI_ERROR != MPI_SUCCESS) {
        throw_mpi_error(statuses_[i].MPI_ERROR, describe(transfer, rank_));
      }
      int bytes = transfer.bytes;
      if (transfer.receives)
        check_mpi(MPI_Get_count(&statuses_[i], MPI_BYTE, &bytes), "reading a message's size");
      if (bytes != transfer.bytes) {
        throw Error(
            fmt::format("a message of {} bytes came where {}", bytes, describe(transfer, rank_)));
      }
    }
    pending_ -= static_cast<std::size_t>(over);
    return pending_ == 0;
  }

  int piece_at(std::size_t at, std::size_t size) const {
    return static_cast<int>(std::min(piece_bytes_, size - at));
  }

  void add(Transfer transfer, MPI_Request request, int status) {
    if (status != MPI_SUCCESS) throw_mpi_error(status, describe(transfer, rank_));
    transfers_.push_back(transfer);
    requests_.push_back(request);
    indices_.push_back(0);
    statuses_.emplace_back();
    ++pending_;
    longest_ = std::max(longest_, static_cast<std::size_t>(transfer.bytes));
  }

  // The peers may never come, and the buffers are about to go. Receives are taken back; one that
  // has begun to arrive gets a moment to end. A send cannot be taken back: the job is about to be
  // aborted.
  void abandon() noexcept {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] != MPI_REQUEST_NULL && transfers_[i].receives) MPI_Cancel(&requests_[i]);
    }
    const auto deadline = Clock::now() + std::chrono::seconds(1);
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      int over = 0;
      do {
        if (MPI_Test(&requests_[i], &over, MPI_STATUS_IGNORE) != MPI_SUCCESS) break;
      } while (!over && transfers_[i].receives && Clock::now() < deadline);
    }
  }

  MPI_Comm comm_;
  int rank_;
  int size_;
  std::size_t piece_bytes_;
  std::shared_ptr<SelfMessages> self_;  // shared with the communicator, which may go first
  std::uint64_t self_ticket_;
  std::vector<Transfer> transfers_;
  std::vector<MPI_Request> requests_;  // of transfers_; MPI_REQUEST_NULL once over
  std::size_t pending_ = 0;            // those that are not over
  std::size_t longest_ = 0;            // bytes of the longest transfer
  std::vector<int> indices_;           // what MPI_Testsome fills in
  std::vector<MPI_Status> statuses_;
};

class MpiCommunicator final : public Communicator {
 public:
  // Takes `comm`.
  MpiCommunicator(MPI_Comm comm, std::size_t piece_bytes) : comm_(comm), piece_bytes_(piece_bytes) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "setting the error handler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "asking for the rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "asking for the number of ranks");
    self_ = std::make_shared<SelfMessages>(rank_);
  }
  // While an exception unwinds MPI is left as it is: the job ends by abort_job().
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() == 0) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    auto ticket = make_ticket();
    for (const Receive& receive : receives)
      ticket->receive(receive.data, receive.from, kMessageTag);
    for (const Send& send : sends) ticket->send(send.data, send.to, kMessageTag);
    return ticket;
  }

  void broadcast(std::span<std::byte> data, int root) override {
    for (std::size_t at = 0; at < data.size(); at += piece_bytes_) {
      const int bytes = static_cast<int>(std::min(piece_bytes_, data.size() - at));
      MPI_Request request = MPI_REQUEST_NULL;
      wait(MPI_Ibcast(data.data() + at, bytes, MPI_BYTE, root, comm_, &request), request,
           "a broadcast", static_cast<std::size_t>(bytes));
    }
  }

  std::vector<std::vector<std::byte>> gather(std::span<const std::byte> mine, int root) override {
    const auto bytes = static_cast<std::int64_t>(mine.size());
    std::vector<std::int64_t> sizes(rank_ == root ? static_cast<std::size_t>(size_) : 0);
    MPI_Request request = MPI_REQUEST_NULL;
    wait(MPI_Igather(&bytes, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, root, comm_, &request),
         request, "gathering sizes");
    std::vector<std::vector<std::byte>> all(sizes.size());
    const auto ticket = make_ticket();
    if (rank_ == root) receive_all(*ticket, sizes, mine, all);
    if (rank_ != root) ticket->send(mine, root, kGatherTag);
    ticket->wait();
    return all;
  }

  std::vector<std::vector<std::byte>> all_gather(std::span<const std::byte> mine) override {
    const auto bytes = static_cast<std::int64_t>(mine.size());
    std::vector<std::int64_t> sizes(static_cast<std::size_t>(size_));
    MPI_Request request = MPI_REQUEST_NULL;
    wait(MPI_Iallgather(&bytes, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, comm_, &request),
         request, "gathering sizes everywhere");
    std::vector<std::vector<std::byte>> all(sizes.size());
    const auto ticket = make_ticket();
    receive_all(*ticket, sizes, mine, all);
    // Each rank begins with its neighbour, so that they do not all write to rank 0 first.
    for (int step = 1; step < size_; ++step) ticket->send(mine, (rank_ + step) % size_, kGatherTag);
    ticket->wait();
    return all;
  }

  std::int64_t all_reduce_max(std::int64_t value) override {
    return all_reduce(value, MPI_MAX, "a maximum");
  }
  std::int64_t all_reduce_min(std::int64_t value) override {
    return all_reduce(value, MPI_MIN, "a minimum");
  }
  std::int64_t all_reduce_sum(std::int64_t value) override {
    return all_reduce(value, MPI_SUM, "a sum");
  }

  void barrier() override {
    MPI_Request request = MPI_REQUEST_NULL;
    wait(MPI_Ibarrier(comm_, &request), request, "a barrier");
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    require(color >= 0, "split: a color is not negative");
    barrier();  // MPI_Comm_split spins until the last rank is there; our barrier does not
    MPI_Comm part = MPI_COMM_NULL;
    check_mpi(MPI_Comm_split(comm_, color, key, &part), "splitting a communicator");
    return std::make_unique<MpiCommunicator>(part, piece_bytes_);
  }

 private:
  std::unique_ptr<MpiTicket> make_ticket() const {
    return std::make_unique<MpiTicket>(comm_, rank_, size_, piece_bytes_, self_);
  }

  void receive_all(MpiTicket& ticket, const std::vector<std::int64_t>& sizes,
                   std::span<const std::byte> mine,
                   std::vector<std::vector<std::byte>>& all) const {
    for (int from = 0; from < size_; ++from) {
      const auto i = static_cast<std::size_t>(from);
      if (from == rank_) {
        all[i].assign(mine.begin(), mine.end());
      } else {
        all[i].resize(static_cast<std::size_t>(sizes[i]));
        ticket.receive(all[i], from, kGatherTag);
      }
    }
  }

  std::int64_t all_reduce(std::int64_t value, MPI_Op op, const char* doing) {
    std::int64_t result = 0;
    MPI_Request request = MPI_REQUEST_NULL;
    wait(MPI_Iallreduce(&value, &result, 1, MPI_INT64_T, op, comm_, &request), request, doing);
    return result;
  }

  // `started` is what the call returned that made the request.
  void wait(int started, MPI_Request& request, const char* doing, std::size_t bytes = 0) const {
    check_mpi(started, doing);
    const Watchdog::Waiting waiting(Watchdog::of_this_thread());
    Backoff backoff(bytes);
    for (;;) {
      int over = 0;
      check_mpi(MPI_Test(&request, &over, MPI_STATUS_IGNORE), doing);
      if (over) return;
      backoff.pause();
    }
  }

  MPI_Comm comm_;
  int rank_ = 0;
  int size_ = 1;
  std::size_t piece_bytes_;
  std::shared_ptr<SelfMessages> self_;
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(std::size_t piece_bytes) {
  require(piece_bytes > 0 && piece_bytes <= std::size_t{1} << 30, "MPI pieces are 1 byte to 1 GiB");
  MPI_Comm all = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &all), "duplicating MPI_COMM_WORLD");
  return std::make_unique<MpiCommunicator>(all, piece_bytes);
}

}  // namespace roundhouse
