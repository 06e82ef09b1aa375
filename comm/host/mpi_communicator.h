// The communicator over MPI, for host memory. LaunchSession::world() is how the program gets one.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/communicator.h"

namespace roundhouse {

// All ranks of the job. Collective; MPI must be initialised. Longer messages travel in pieces of at
// most `piece_bytes` (1 byte to 1 GiB, the same on every rank): MPI counts in int, and a wait sees
// that a transfer moves only piece by piece. Communicators split from this one inherit it.
std::unique_ptr<Communicator> make_mpi_communicator(std::size_t piece_bytes = std::size_t{4} << 20);

}  // namespace roundhouse
