// MPI's return codes as Error. Without mpi.h, so that only .cpp files need it.
#pragma once

#include <string>

namespace roundhouse {

// "MPI: <what the library says>, while <doing>"
[[noreturn]] void throw_mpi_error(int status, const std::string& doing);

inline void check_mpi(int status, const char* doing) {
  if (status != 0) throw_mpi_error(status, doing);  // the standard fixes MPI_SUCCESS at 0
}

}  // namespace roundhouse
