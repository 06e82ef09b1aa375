#include <mpi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "nccl.h"

namespace {

constexpr int kGreetingTag = 1;

[[noreturn]] void forbidden(const char* what) {
  std::fprintf(stderr, "NCCL imitation: %s\n", what);
  MPI_Abort(MPI_COMM_WORLD, 1);
  std::abort();
}

int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

struct Greeting {
  int key;  // of the unique id
  int rank;
};
std::map<int, std::map<int, int>> known;  // key, rank in the communicator -> rank in the world

void hear_greetings() {
  for (;;) {
    int there = 0;
    MPI_Status status;
    MPI_Iprobe(MPI_ANY_SOURCE, kGreetingTag, MPI_COMM_WORLD, &there, &status);
    if (!there) return;
    Greeting greeting;
    MPI_Recv(&greeting, sizeof greeting, MPI_BYTE, status.MPI_SOURCE, kGreetingTag, MPI_COMM_WORLD,
             MPI_STATUS_IGNORE);
    known[greeting.key][greeting.rank] = status.MPI_SOURCE;
  }
}

}  // namespace

// What is queued; each is called again and again until it returns true, then the next.
struct StreamImitation {
  std::deque<std::function<bool()>> queue;
  void run() {
    while (!queue.empty() && queue.front()()) queue.pop_front();
  }
};

struct EventImitation {
  StreamImitation* stream = nullptr;
  bool passed = false;
};

struct CommImitation {
  int key = 0;
  int rank = 0;
  int ranks = 0;
  int polls_left = 0;  // until what was asked takes effect
  std::function<void()> take_effect;
  bool connected = false;

  int peer(int of) const { return known[key].at(of); }

  ncclResult_t ask(std::function<void()> effect) {
    if (!connected) forbidden("a call before the connection stands");
    if (take_effect) forbidden("a call while another is in progress");
    take_effect = std::move(effect);
    polls_left = 2;
    return ncclInProgress;
  }
  ncclResult_t poll() {
    hear_greetings();
    if (!connected) {
      connected = known[key].size() == static_cast<std::size_t>(ranks);
      return connected ? ncclSuccess : ncclInProgress;
    }
    if (!take_effect) return ncclSuccess;
    if (--polls_left > 0) return ncclInProgress;
    take_effect();
    take_effect = nullptr;
    return ncclSuccess;
  }
};

namespace {

// One message, started when it comes to the head of its stream; a send ends when its receive has begun.
std::function<bool()> message(bool sends, void* data, std::size_t bytes, int peer, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  bool started = false;
  return [=]() mutable {
    const int count = static_cast<int>(bytes);
    if (!started && sends) MPI_Issend(data, count, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    if (!started && !sends) MPI_Irecv(data, count, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &request);
    started = true;
    int over = 0;
    MPI_Test(&request, &over, MPI_STATUS_IGNORE);
    return over != 0;
  };
}

}  // namespace

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
  std::snprintf(properties->uuid.bytes, sizeof properties->uuid.bytes, "gpu %d", device);
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
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (!stream->queue.empty()) forbidden("a stream with work on it is destroyed");
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new EventImitation;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  event->passed = false;
  stream->queue.push_back([event] { return event->passed = true; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (!event->passed) event->stream->run();
  return event->passed ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (event->stream != nullptr && !event->passed) forbidden("an event on its way is destroyed");
  delete event;
  return cudaSuccess;
}

const char* ncclGetErrorString(ncclResult_t) { return "an error"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  static int made = 0;
  *id = {};
  const int key = 100 + world_rank() * 4096 + made++;  // also the tag of all its messages
  std::memcpy(id->internal, &key, sizeof key);
  return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  if (config->blocking != 0) forbidden("a communicator that blocks");
  *comm = new CommImitation;
  std::memcpy(&(*comm)->key, id.internal, sizeof(int));
  (*comm)->rank = rank;
  (*comm)->ranks = ranks;
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
  *error = comm->poll();
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (comm->take_effect) forbidden("a communicator is destroyed while a call is in progress");
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return comm->ask([=] {
    stream->queue.push_back(
        message(true, const_cast<void*>(data), count, comm->peer(peer), comm->key));
  });
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return comm->ask(
      [=] { stream->queue.push_back(message(false, data, count, comm->peer(peer), comm->key)); });
}

ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t count, ncclDataType_t,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return comm->ask([=] {
    if (comm->rank != root) {
      stream->queue.push_back(message(false, receive, count, comm->peer(root), comm->key));
      return;
    }
    for (int rank = 0; rank < comm->ranks; ++rank) {
      if (rank != root) {
        stream->queue.push_back(
            message(true, const_cast<void*>(send), count, comm->peer(rank), comm->key));
      }
    }
  });
}
