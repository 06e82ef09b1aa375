#include "nccl_emulation.h"

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nccl.h"

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kGreetingTag = 1;  // communicators
constexpr int kWayTag = 2;       // of one rank to another
// A kernel alone on the device waits for ever if its other halves never come to the heads of theirs. The tests' kernels
// wait for milliseconds.
constexpr std::chrono::seconds kDeadlock{20};

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

[[noreturn]] void forbidden(const std::string& what) {
  std::fprintf(stderr, "NCCL imitation, rank %d: %s\n", world_rank(), what.c_str());
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

struct Greeting {
  int key;  // of the unique id
  int rank;
};
std::map<int, std::map<int, int>> known;  // key, rank in the communicator -> rank in the world

struct Way {
  int key;
  int from;
  int to;
  auto operator<=>(const Way&) const = default;
};
std::set<Way> announced;  // by this rank
std::set<Way> heard;      // from the other end

template <class T, class Take>
void hear(int tag, const Take& take) {
  for (;;) {
    int there = 0;
    MPI_Status status;
    MPI_Iprobe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &there, &status);
    if (!there) return;
    T message;
    MPI_Recv(&message, sizeof message, MPI_BYTE, status.MPI_SOURCE, tag, MPI_COMM_WORLD,
             MPI_STATUS_IGNORE);
    take(message, status.MPI_SOURCE);
  }
}

void hear_all() {
  hear<Greeting>(kGreetingTag,
                 [](const Greeting& g, int source) { known[g.key][g.rank] = source; });
  hear<Way>(kWayTag, [](const Way& way, int) { heard.insert(way); });
}

struct Message {
  bool sends;
  void* data;
  int bytes;
  int peer;  // in the communicator
};

struct Kernel {
  CommImitation* comm = nullptr;
  std::vector<Message> messages;
  std::vector<MPI_Request> requests;  // once it runs
  long number = 0;                    // of its launch
  Clock::time_point since;
  bool broken = false;
};

nccl_emulation::Order order = nccl_emulation::Order::kLaunched;
std::minstd_rand shuffle(5);
int kernels_until_break = 0;
bool connects = true;
long launches = 0;
int made = 0, aborted = 0;
std::set<CommImitation*> comms;

}  // namespace

struct EventImitation {
  StreamImitation* stream = nullptr;
  bool passed = false;
};

struct StreamImitation {
  struct Item {
    std::unique_ptr<Kernel> kernel;
    EventImitation* event = nullptr;  // where there is no kernel
  };
  std::deque<Item> queue;
};

struct CommImitation {
  int key = 0;
  int rank = 0;
  int ranks = 0;
  bool connects = true;
  bool connected = false;
  ncclResult_t error = ncclSuccess;
  // A launch in progress:
  std::unique_ptr<Kernel> kernel;
  StreamImitation* stream = nullptr;
  int polls_left = 0;
  bool finalized = false;

  int world(int of) const { return known[key].at(of); }
};

namespace {

std::set<StreamImitation*> streams;
StreamImitation* running = nullptr;  // whose head keeps the device

std::string describe(const Kernel& kernel) {
  std::string text = "a kernel of communicator " + std::to_string(kernel.comm->key) + " (";
  for (std::size_t i = 0; i < kernel.messages.size(); ++i) {
    const Message& message = kernel.messages[i];
    if (i == 8) return text + ", ...)";
    text += (i > 0 ? ", " : "") + std::string(message.sends ? "to" : "from") + " rank " +
            std::to_string(message.peer);
  }
  return text + ")";
}

void begin(Kernel& kernel) {
  kernel.since = Clock::now();
  if (kernel.broken) {
    kernel.comm->error = ncclRemoteError;
    return;  // moves nothing
  }
  for (const Message& message : kernel.messages) {
    const int peer = kernel.comm->world(message.peer), tag = kernel.comm->key;
    MPI_Request& request = kernel.requests.emplace_back(MPI_REQUEST_NULL);
    // A send ends when its receive has begun.
    if (message.sends) {
      MPI_Issend(message.data, message.bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    } else {
      MPI_Irecv(message.data, message.bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    }
  }
}

bool is_over(Kernel& kernel) {
  if (kernel.broken) return false;
  int over = 0;
  MPI_Testall(static_cast<int>(kernel.requests.size()), kernel.requests.data(), &over,
              MPI_STATUSES_IGNORE);
  return over != 0;
}

// One kernel at a time: nothing promises that two streams progress side by side.
void run_device() {
  for (;;) {
    std::vector<StreamImitation*> candidates;
    for (StreamImitation* const stream : streams) {
      while (!stream->queue.empty() && !stream->queue.front().kernel) {
        stream->queue.front().event->passed = true;
        stream->queue.pop_front();
      }
      if (!stream->queue.empty()) candidates.push_back(stream);
    }
    if (candidates.empty()) return;
    if (running == nullptr) {
      std::ranges::sort(candidates, {},
                        [](const StreamImitation* s) { return s->queue.front().kernel->number; });
      switch (order) {
        case nccl_emulation::Order::kLaunched:
          running = candidates.front();
          break;
        case nccl_emulation::Order::kNewest:
          running = candidates.back();
          break;
        case nccl_emulation::Order::kShuffled:
          running = candidates[shuffle() % candidates.size()];
      }
      begin(*running->queue.front().kernel);
    }
    Kernel& kernel = *running->queue.front().kernel;
    if (!is_over(kernel)) {
      if (Clock::now() - kernel.since > kDeadlock)
        forbidden("deadlock: for " + std::to_string(kDeadlock.count()) +
                  " s the device has been kept by " + describe(kernel) + ", with " +
                  std::to_string(candidates.size() - 1) + " other streams waiting");
      return;
    }
    running->queue.pop_front();
    running = nullptr;
  }
}

// Each way from one rank to another is connected at its first message, by both ends.
bool ways_stand(const CommImitation& comm, const Kernel& kernel) {
  bool all = true;
  for (const Message& message : kernel.messages) {
    const Way way{comm.key, message.sends ? comm.rank : message.peer,
                  message.sends ? message.peer : comm.rank};
    if (announced.insert(way).second) {
      MPI_Send(&way, sizeof way, MPI_BYTE, comm.world(message.peer), kWayTag, MPI_COMM_WORLD);
    }
    all = all && heard.contains(way);
  }
  return all;
}

ncclResult_t poll(CommImitation& comm) {
  hear_all();
  run_device();
  if (comm.error != ncclSuccess) return comm.error;
  if (!comm.connected) {
    comm.connected =
        comm.connects && known[comm.key].size() == static_cast<std::size_t>(comm.ranks);
    return comm.connected ? ncclSuccess : ncclInProgress;
  }
  if (!comm.kernel) return ncclSuccess;
  if (!ways_stand(comm, *comm.kernel) || --comm.polls_left > 0) return ncclInProgress;
  comm.kernel->number = ++launches;
  if (kernels_until_break > 0 && --kernels_until_break == 0) comm.kernel->broken = true;
  comm.stream->queue.push_back({std::move(comm.kernel), nullptr});
  return ncclSuccess;
}

int group_depth = 0;
std::vector<CommImitation*> aborts;  // of the group that is open
CommImitation* asked = nullptr;      // by the group that is open

ncclResult_t ask(CommImitation& comm, StreamImitation* stream, std::vector<Message> messages) {
  if (!comm.connected) forbidden("a call before the connection stands");
  if (comm.finalized) forbidden("a call after the end of a communicator");
  if (comm.kernel && asked != &comm) forbidden("a call while another is in progress");
  const char* const ordered = std::getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
  for (const CommImitation* other : comms) {
    if (other != &comm && other->kernel && ordered && *ordered == '1')
      forbidden("two communicators launch at a time, from two threads of NCCL");
  }
  if (!comm.kernel) {
    comm.kernel = std::make_unique<Kernel>();
    comm.kernel->comm = &comm;
    comm.stream = stream;
    comm.polls_left = 2;
  }
  if (comm.stream != stream) forbidden("two streams in one group");
  comm.kernel->messages.insert(comm.kernel->messages.end(), messages.begin(), messages.end());
  if (group_depth == 0) return ncclInProgress;
  asked = &comm;
  return ncclSuccess;
}

void abort_together(const std::vector<CommImitation*>& gone) {
  const auto goes = [&](const Kernel* kernel) {
    return kernel != nullptr && std::ranges::find(gone, kernel->comm) != gone.end();
  };
  if (running != nullptr && !goes(running->queue.front().kernel.get()))
    forbidden("the abort of a communicator waits for " + describe(*running->queue.front().kernel) +
              ", which is not aborted with it");
  if (running != nullptr) {
    for (MPI_Request& request : running->queue.front().kernel->requests) {
      if (request == MPI_REQUEST_NULL) continue;
      MPI_Cancel(&request);
      MPI_Request_free(&request);
    }
    running = nullptr;
  }
  for (StreamImitation* const stream : streams) {
    std::erase_if(stream->queue, [&](const auto& item) { return goes(item.kernel.get()); });
  }
  for (CommImitation* const comm : gone) {
    comms.erase(comm);
    delete comm;
    ++aborted;
  }
}

}  // namespace

namespace nccl_emulation {
void set_order(Order new_order) { order = new_order; }
void break_network_at_kernel(int count) { kernels_until_break = count; }
void let_connect(bool does) { connects = does; }
int communicators() { return static_cast<int>(comms.size()); }
int communicators_made() { return made; }
int communicators_aborted() { return aborted; }
}  // namespace nccl_emulation

const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaGetDeviceCount(int* count) {
  MPI_Comm_size(MPI_COMM_WORLD, count);
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
  *device = world_rank();
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  *properties = {0, device, 0};
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) {
  *memory = std::malloc(bytes == 0 ? 1 : bytes);
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new StreamImitation;
  streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run_device();
  if (!stream->queue.empty()) forbidden("a stream with work on it is destroyed");
  streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EventImitation;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  for (const CommImitation* comm : comms) {
    if (comm->kernel && comm->stream == stream)
      forbidden("a stream is used while a launch on it is in progress");
  }
  event->stream = stream;
  event->passed = false;
  stream->queue.push_back({nullptr, event});
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  hear_all();
  run_device();
  return event->passed ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event->stream != nullptr && !event->passed) {
    std::erase_if(event->stream->queue, [&](const auto& item) { return item.event == event; });
  }
  delete event;
  return cudaSuccess;
}

const char* ncclGetErrorString(ncclResult_t result) {
  return result == ncclRemoteError ? "remote process exited or there was a network error"
                                   : "an error";
}
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int ids = 0;
  *id = {};
  const int key = 100 + world_rank() * 4096 + ids++;  // also the tag of all its messages
  std::memcpy(id->internal, &key, sizeof key);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) forbidden("a communicator that blocks");
  *comm = new CommImitation;
  comms.insert(*comm);
  ++made;
  std::memcpy(&(*comm)->key, id.internal, sizeof(int));
  (*comm)->rank = rank;
  (*comm)->ranks = ranks;
  (*comm)->connects = connects;
  known[(*comm)->key][rank] = world_rank();
  int world = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &world);
  const Greeting greeting{(*comm)->key, rank};
  for (int to = 0; to < world; ++to) {
    if (to != world_rank())
      MPI_Send(&greeting, sizeof greeting, MPI_BYTE, to, kGreetingTag, MPI_COMM_WORLD);
  }
  return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  if (!comms.contains(comm)) forbidden("a communicator is used after its end");
  *error = poll(*comm);
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  comm->finalized = true;
  return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->kernel) forbidden("a communicator is destroyed while a call is in progress");
  comms.erase(comm);
  delete comm;
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (group_depth == 0) {
    abort_together({comm});
  } else {
    aborts.push_back(comm);
  }
  return ncclSuccess;
}

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0) return ncclSuccess;
  const bool in_progress = std::exchange(asked, nullptr) != nullptr;
  if (!aborts.empty()) abort_together(std::exchange(aborts, {}));
  return in_progress ? ncclInProgress : ncclSuccess;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return ask(*comm, stream, {{true, const_cast<void*>(data), static_cast<int>(count), peer}});
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return ask(*comm, stream, {{false, data, static_cast<int>(count), peer}});
}

ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  const int bytes = static_cast<int>(count);
  std::vector<Message> messages;
  if (comm->rank != root) messages.push_back({false, receive, bytes, root});
  for (int rank = 0; comm->rank == root && rank < comm->ranks; ++rank) {
    if (rank != root) messages.push_back({true, const_cast<void*>(send), bytes, rank});
  }
  return ask(*comm, stream, std::move(messages));
}
