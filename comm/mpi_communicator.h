// The communicator over MPI, for host memory. LaunchSession::world() is how the program gets one.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/communicator.h"

namespace roundhouse {

// All ranks of the job. Collective; MPI must be initialised. MPI counts in int, so longer messages travel in pieces of
// at most `piece_bytes`, the same on every rank; communicators split from this one inherit it.
std::unique_ptr<Communicator> make_mpi_communicator(std::size_t piece_bytes = std::size_t{1} << 30);

}  // namespace roundhouse
