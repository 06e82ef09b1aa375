#include "comm/nccl/nccl_connection.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <fstream>
#include <future>
#include <thread>
#include <utility>

#include "base/error.h"
#include "comm/host/backoff.h"
#include "comm/watchdog.h"

namespace roundhouse {

struct NcclConnection::State {
  struct Operation {
    cudaEvent_t end;
    std::string what;
  };

  std::string name;
  std::vector<std::string> hosts;  // by rank
  int rank = 0;
  std::chrono::seconds allowed{0};
  ncclComm_t comm = nullptr;  // null again once aborted
  cudaStream_t stream = nullptr;
  std::deque<Operation> under_way;
  std::uint64_t launched = 0;
  std::uint64_t ended = 0;
};

namespace {

using Clock = std::chrono::steady_clock;
using State = NcclConnection::State;

// What a rank says first, and what rank 0 answers.
using HostName = std::array<char, 64>;
constexpr std::chrono::seconds kAbortPatience{10};

// Of this process. Only the thread that makes connections looks.
std::vector<State*>& connections() {
  static std::vector<State*> all;
  return all;
}

void check_cuda(cudaError_t status, const std::string& doing) {
  if (status == cudaSuccess) return;
  throw Error("CUDA: " + std::string(cudaGetErrorString(status)) + ", while " + doing);
}

std::string seconds(std::chrono::seconds time) { return fmt::format("{} s", time.count()); }

std::string rank_name(const State& s, int rank) {
  return fmt::format("rank {} ({})", rank, s.hosts[rank]);
}

// "rank 0 (node1), rank 2 (node2)"
std::string rank_names(const State& s, std::vector<int> ranks) {
  std::ranges::sort(ranks);
  ranks.erase(std::ranges::unique(ranks).begin(), ranks.end());
  std::string names;
  for (const int rank : ranks) names += (names.empty() ? "" : ", ") + rank_name(s, rank);
  return names;
}

// All at once: aborting one connection may wait for the kernels of another. NCCL's abort has been seen to hang itself; that
// must not hide the error that led here, so it gets a thread and some time.
void abort_all() {
  std::vector<ncclComm_t> comms;
  for (State* const s : connections()) {
    if (s->comm != nullptr) comms.push_back(std::exchange(s->comm, nullptr));
  }
  if (comms.empty()) return;
  int device = 0;
  (void)cudaGetDevice(&device);
  std::promise<void> done;
  const auto aborted = done.get_future();
  std::thread([device, comms = std::move(comms), done = std::move(done)]() mutable {
    (void)cudaSetDevice(device);
    (void)ncclGroupStart();
    for (const ncclComm_t comm : comms) (void)ncclCommAbort(comm);
    (void)ncclGroupEnd();
    done.set_value();
  }).detach();
  (void)aborted.wait_for(kAbortPatience);
}

[[noreturn]] void fail(const std::string& what) {
  const Error error("NCCL: " + what);
  abort_all();
  throw error;
}

[[noreturn]] void fail(const State& s, ncclResult_t status, const std::string& doing) {
  const char* const detail = ncclGetLastError(s.comm);
  fail(std::string(ncclGetErrorString(status)) + ", while " + doing +
       (detail && *detail ? " (" + std::string(detail) + ")" : ""));
}

void check(const State& s, ncclResult_t status, const std::string& doing) {
  if (status != ncclSuccess && status != ncclInProgress) fail(s, status, doing);
}

ncclResult_t state_of(const State& s) {
  ncclResult_t now = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(s.comm, &now);
  return asked == ncclSuccess ? now : asked;
}

// Until what was asked of a communicator that does not block has been done: before that, nothing else may be asked of it,
// and of no other communicator either, whose kernels would race with this one's for their place on the device.
void settle(const State& s, const std::string& doing) {
  const auto deadline = Clock::now() + s.allowed;
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  Backoff backoff(0);
  for (ncclResult_t now = state_of(s); now != ncclSuccess; now = state_of(s)) {
    check(s, now, doing);
    if (Clock::now() > deadline)
      fail("nothing came of " + doing + " in " + seconds(s.allowed) +
           "; NCCL_DEBUG=INFO tells more");
    backoff.pause();
  }
}

// `ask` calls NCCL and returns the first status that is no success.
template <class Ask>
std::uint64_t launch(State& s, std::string doing, const Ask& ask) {
  if (s.comm == nullptr) throw Error("NCCL: " + doing + ": the connection was aborted before");
  check(s, ncclGroupStart(), doing);
  const ncclResult_t asked = ask();
  const ncclResult_t grouped = ncclGroupEnd();
  check(s, asked, doing);
  check(s, grouped, doing);
  settle(s, doing);
  cudaEvent_t end = nullptr;
  check_cuda(cudaEventCreateWithFlags(&end, cudaEventDisableTiming), "making an event");
  s.under_way.push_back({end, std::move(doing)});
  check_cuda(cudaEventRecord(end, s.stream), "recording an event");
  return ++s.launched;
}

// Counts what has ended; throws where what has not will not.
void poll(State& s) {
  while (!s.under_way.empty()) {
    const State::Operation& first = s.under_way.front();
    const cudaError_t status = cudaEventQuery(first.end);
    if (status == cudaErrorNotReady) {
      check(s, state_of(s), first.what);
      return;
    }
    check_cuda(status, first.what);
    check_cuda(cudaEventDestroy(first.end), "freeing an event");
    s.under_way.pop_front();
    ++s.ended;
  }
}

template <class Done>
bool wait_until(Clock::time_point deadline, const Done& done) {
  const Watchdog::Waiting waiting(Watchdog::of_this_thread());
  Backoff backoff(0);
  while (!done()) {
    if (Clock::now() > deadline) return false;
    backoff.pause();
  }
  return true;
}

// Every rank tells rank 0 that it is there and where; once all have, rank 0 sends all names and the id.
ncclUniqueId meet(State& s, Communicator& host) {
  const auto deadline = Clock::now() + s.allowed;
  const auto size = static_cast<std::size_t>(host.size());
  std::vector<HostName> names(size);
  HostName& mine = names[s.rank];
  gethostname(mine.data(), mine.size() - 1);
  ncclUniqueId id{};
  const auto bytes_of = [](auto& value) { return std::as_writable_bytes(std::span(&value, 1)); };

  if (s.rank == 0) {
    std::vector<std::unique_ptr<Ticket>> tickets;
    for (int from = 1; from < host.size(); ++from) {
      const Receive receive{bytes_of(names[from]), from};
      tickets.push_back(host.start({}, {&receive, 1}));
    }
    std::string missing;
    for (std::size_t i = 0; i < tickets.size(); ++i) {
      if (!wait_until(deadline, [&] { return tickets[i]->done(); }))
        missing += fmt::format("{}{}", missing.empty() ? "rank " : ", rank ", i + 1);
    }
    if (!missing.empty())
      throw Error("NCCL: connecting " + s.name + ": " + missing + " did not come in " +
                  seconds(s.allowed));
    if (const ncclResult_t status = ncclGetUniqueId(&id); status != ncclSuccess)
      fail(s, status, "making an id for " + s.name);
    std::vector<Send> sends;
    for (int to = 1; to < host.size(); ++to) {
      sends.push_back({bytes_of(id), to});
      sends.push_back({std::as_bytes(std::span(names)), to});
    }
    host.start(sends, {})->wait();
  } else {
    const std::vector<std::byte> name(bytes_of(mine).begin(), bytes_of(mine).end());
    const Send send{name, 0};
    const std::array<Receive, 2> receives{
        {{bytes_of(id), 0}, {std::as_writable_bytes(std::span(names)), 0}}};
    const auto ticket = host.start({&send, 1}, receives);
    if (!wait_until(deadline, [&] { return ticket->done(); })) {
      throw Error("NCCL: connecting " + s.name + ": no word from rank 0 in " + seconds(s.allowed));
    }
  }
  for (const HostName& name : names) s.hosts.emplace_back(name.data());
  return id;
}

void connect(State& s, Communicator& host) {
  const ncclUniqueId id = meet(s, host);
  const std::string doing =
      fmt::format("connecting {}, {} ranks, at {}", s.name, host.size(), rank_name(s, s.rank));
  check_cuda(cudaStreamCreateWithFlags(&s.stream, cudaStreamNonBlocking), "making a stream");
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.maxCTAs = 8;  // multiprocessors that a transfer may take from kernels that run beside it
  const ncclResult_t asked = ncclCommInitRankConfig(&s.comm, host.size(), id, s.rank, &config);
  check(s, asked, doing);
  settle(s, doing);
}

}  // namespace

NcclConnection::NcclConnection(Communicator& host, const DeviceGroup& group)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.name = group.name;
  s.rank = host.rank();
  s.allowed = group.deadline;
  connections().push_back(&s);
  struct Undo {  // the destructor is not called where the constructor throws
    State* state;
    ~Undo() {
      if (state == nullptr) return;
      abort_all();
      std::erase(connections(), state);
    }
  } undo{&s};
  connect(s, host);

  const auto deadline = Clock::now() + s.allowed;
  std::uint64_t last = 0;
  // One to send and one to receive for each peer. Kept where this throws: to free it might wait for a kernel without end.
  std::byte* bytes = nullptr;
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&bytes), 1 + group.peers.size()),
             "making room for a byte");
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (const int peer : group.peers) {
    sends.push_back({{bytes, 1}, peer});
    receives.push_back({{bytes + receives.size() + 1, 1}, peer});
  }
  if (!sends.empty()) last = exchange(sends, receives);
  if (group.broadcasts) last = broadcast({bytes, 1}, 0);
  if (!wait_until(deadline, [&] { return over(last); }))
    fail("nothing came of the first messages of " + s.name + ", " + s.under_way.front().what +
         ", in " + seconds(s.allowed) + "; NCCL_DEBUG=INFO tells more");
  check_cuda(cudaFree(bytes), "freeing a byte");
  undo.state = nullptr;
}

NcclConnection::~NcclConnection() {
  State& s = *state_;
  if (std::uncaught_exceptions() > 0) {
    abort_all();
  } else if (s.comm != nullptr) {
    ncclResult_t status = ncclCommFinalize(s.comm);
    const auto end = Clock::now() + s.allowed;
    for (Backoff backoff(0); status == ncclInProgress && Clock::now() < end; backoff.pause())
      status = state_of(s);
    if (status == ncclSuccess) {
      ncclCommDestroy(s.comm);
    } else {
      abort_all();
    }
  }
  std::erase(connections(), &s);
  for (const State::Operation& operation : s.under_way) cudaEventDestroy(operation.end);
  if (s.stream != nullptr) cudaStreamDestroy(s.stream);
}

std::uint64_t NcclConnection::exchange(std::span<const Send> sends,
                                       std::span<const Receive> receives) {
  State& s = *state_;
  std::vector<int> to, from;
  for (const Send& send : sends) to.push_back(send.to);
  for (const Receive& receive : receives) from.push_back(receive.from);
  std::string doing = rank_name(s, s.rank) + " of " + s.name;
  if (!to.empty()) doing += " sends to " + rank_names(s, to);
  if (!from.empty())
    doing += (to.empty() ? " receives from " : " and receives from ") + rank_names(s, from);
  return launch(s, std::move(doing), [&] {
    ncclResult_t status = ncclSuccess;
    const auto keep = [&](ncclResult_t asked) {
      if (status == ncclSuccess && asked != ncclInProgress) status = asked;
    };
    for (const Send& send : sends)
      keep(ncclSend(send.data.data(), send.data.size(), ncclInt8, send.to, s.comm, s.stream));
    for (const Receive& receive : receives)
      keep(ncclRecv(receive.data.data(), receive.data.size(), ncclInt8, receive.from, s.comm,
                    s.stream));
    return status;
  });
}

std::uint64_t NcclConnection::broadcast(std::span<std::byte> data, int root) {
  State& s = *state_;
  return launch(s,
                rank_name(s, s.rank) + " of " + s.name + " takes part in a broadcast from " +
                    rank_name(s, root),
                [&] {
                  return ncclBroadcast(data.data(), data.data(), data.size(), ncclInt8, root,
                                       s.comm, s.stream);
                });
}

bool NcclConnection::over(std::uint64_t operation) {
  if (state_->ended >= operation) return true;
  for (State* const s : connections()) {
    if (s->comm != nullptr) poll(*s);
  }
  if (state_->ended >= operation) return true;
  if (state_->comm == nullptr)
    throw Error("NCCL: " + state_->name + ": the connection was aborted before");
  return false;
}

bool NcclConnection::aborted() const { return state_->comm == nullptr; }

std::string current_gpu() {
  int device = 0;
  cudaDeviceProp properties{};
  check_cuda(cudaGetDevice(&device), "asking for the current device");
  check_cuda(cudaGetDeviceProperties(&properties, device), "asking for a device's properties");
  // Names of hosts may repeat, and one host may have several, where there are containers.
  std::string host;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), host);
  return fmt::format("{} {}:{}:{}", host, properties.pciDomainID, properties.pciBusID,
                     properties.pciDeviceID);
}

}  // namespace roundhouse
