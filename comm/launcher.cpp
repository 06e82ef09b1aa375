#include "comm/launcher.h"

#include <fmt/format.h>
#include <mpi.h>
#include <unistd.h>

#ifdef ROUNDHOUSE_CUDA
#include <nccl.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "base/quote.h"
#include "comm/host/mpi_communicator.h"
#include "comm/host/mpi_error.h"

namespace roundhouse {
namespace {

constexpr std::chrono::seconds kAbortPatience{3};

// The value of the first of these that is set, else `otherwise`.
int environment_number(std::initializer_list<const char*> names, int otherwise) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name)) return std::atoi(value);
  }
  return otherwise;
}

MPI_Comm node_communicator() {
  MPI_Comm node = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
            "finding the ranks of this node");
  return node;
}

bool mpi_is_up() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

}  // namespace

bool started_by_launcher() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") || std::getenv("PMIX_RANK")) return true;
  // What follows are several processes that could not find each other: each would take itself for
  // the only one.
  if (std::getenv("SLURM_STEP_ID") && std::getenv("SLURM_PROCID") &&
      environment_number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}, 1) > 1) {
    throw Error("started by srun without MPI: use srun --mpi=pmix");
  }
  if (environment_number({"PMI_SIZE"}, 1) > 1) {
    throw Error(
        "started by the launcher of another MPI library: use Open MPI's mpirun, or srun "
        "--mpi=pmix");
  }
  return false;
}

LaunchSession::LaunchSession(int& argc, char**& argv) {
  // Here, where there are no other threads yet. NCCL 2.26 and later then run the kernels of several communicators of a device
  // in the order of their launches.
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
  if (!started_by_launcher()) return;
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided), "initialising");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
            "setting the error handler");
  if (provided < MPI_THREAD_MULTIPLE) {
    throw Error("this MPI library lacks MPI_THREAD_MULTIPLE, which the watchdog needs");
  }
  int size = 0;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "asking for the number of ranks");
  const int started = environment_number({"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"}, size);
  if (size != started) {
    throw Error(
        fmt::format("the launcher started {} processes, but MPI connects {}: launcher and MPI "
                    "library do not fit together",
                    started, size));
  }

  MPI_Comm node = node_communicator();
  check_mpi(MPI_Comm_rank(node, &local_rank_), "asking for the rank in the node");
  check_mpi(MPI_Comm_size(node, &local_size_), "asking for the ranks of the node");
  check_mpi(MPI_Comm_free(&node), "freeing a communicator");
  mpi_ = true;
}

LaunchSession::~LaunchSession() {
  if (mpi_ && std::uncaught_exceptions() == 0) MPI_Finalize();
}

std::unique_ptr<Communicator> LaunchSession::world() {
  return mpi_ ? make_mpi_communicator() : make_local_communicator();
}

int LaunchSession::local_rank() const { return local_rank_; }
int LaunchSession::local_size() const { return local_size_; }

std::vector<std::string> LaunchSession::gather_on_node(const std::string& mine) const {
  if (!mpi_) return {mine};
  MPI_Comm node = node_communicator();
  const auto ranks = static_cast<std::size_t>(local_size_);
  std::vector<int> sizes(ranks), starts(ranks);
  const int size = static_cast<int>(mine.size());
  check_mpi(MPI_Allgather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, node), "gathering sizes");
  std::exclusive_scan(sizes.begin(), sizes.end(), starts.begin(), 0);
  std::string all(static_cast<std::size_t>(starts.back() + sizes.back()), ' ');
  check_mpi(MPI_Allgatherv(mine.data(), size, MPI_CHAR, all.data(), sizes.data(), starts.data(),
                           MPI_CHAR, node),
            "gathering texts");
  check_mpi(MPI_Comm_free(&node), "freeing a communicator");
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < ranks; ++i) {
    texts.push_back(
        all.substr(static_cast<std::size_t>(starts[i]), static_cast<std::size_t>(sizes[i])));
  }
  return texts;
}

std::string message_libraries() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  std::string versions(text, static_cast<std::size_t>(length));
  versions.resize(
      std::min(versions.find_first_of(",\n"), versions.size()));  // where it was built follows
#ifdef ROUNDHOUSE_CUDA
  int number = 0;
  if (ncclGetVersion(&number) == ncclSuccess) versions += fmt::format(", NCCL {}", number);
#endif
  return versions;
}

void abort_job(int exit_code, const std::string& what) {
  static std::atomic_flag begun;
  if (begun.test_and_set()) {
    for (;;) pause();  // another thread is at it
  }
  // First of all, because everything below can block: stderr on a full pipe, MPI on a lock of a
  // stuck thread.
  try {
    std::thread([exit_code] {
      std::this_thread::sleep_for(kAbortPatience);
      _exit(exit_code);
    }).detach();
  } catch (const std::system_error&) {
    // No thread to be had: the message and MPI_Abort matter more.
  }

  const bool mpi = mpi_is_up();
  int rank = environment_number({"OMPI_COMM_WORLD_RANK", "PMIX_RANK"}, 0);
  if (mpi) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::string line = fmt::format("[rank {}] {}\n", rank, printable_line(what));
  std::fwrite(line.data(), 1, line.size(), stderr);  // one write: stderr has no buffer
  std::fflush(nullptr);

  if (mpi) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

}  // namespace roundhouse
