// What mpi_main.cpp offers to the tests that are linked with it.
#pragma once

#include "comm/communicator.h"
#include "comm/launcher.h"

namespace roundhouse {

// All ranks of this test run: MPI under mpirun, else the local communicator.
Communicator& test_world();
LaunchSession& test_session();

}  // namespace roundhouse
