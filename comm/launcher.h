// The outside of a job: is this process one of several ranks, and how does it end.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace roundhouse {

// True under mpirun, or srun --mpi=pmix (environment variables of PMIx / Open MPI). Without a launcher MPI is never
// initialised. Throws Error where several processes were started in a way that MPI cannot connect (plain srun).
bool started_by_launcher();

// MPI_Init_thread(MPI_THREAD_MULTIPLE) to MPI_Finalize if started by a launcher, else nothing. The first object in
// main, so that it is the last to go. While an exception unwinds it does not finalize: the peers may never come.
// Also sets what NCCL reads from the environment, NCCL_LAUNCH_ORDER_IMPLICIT=1, unless the user has.
class LaunchSession {
 public:
  LaunchSession(int& argc, char**& argv);
  ~LaunchSession();
  LaunchSession(const LaunchSession&) = delete;
  LaunchSession& operator=(const LaunchSession&) = delete;

  std::unique_ptr<Communicator> world();  // all ranks: MPI, or the local communicator of size 1
  int local_rank() const;                 // among the ranks of this node
  int local_size() const;
  // The texts of this node's ranks, by local rank. Collective over them.
  std::vector<std::string> gather_on_node(const std::string& mine) const;

 private:
  bool mpi_ = false;
  int local_rank_ = 0;
  int local_size_ = 1;
};

std::unique_ptr<Communicator> make_local_communicator();

// Those that move messages: "Open MPI v4.1.4", and with CUDA ", NCCL 22809" (its number as nccl.h has it).
std::string message_libraries();

// Prints one line "[rank r] what" on stderr and ends the whole job with this exit code, within seconds, from any thread.
[[noreturn]] void abort_job(int exit_code, const std::string& what);

}  // namespace roundhouse
