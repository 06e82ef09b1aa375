// The ways to fail. Each carries one line that says what and where; main prints it and picks the exit code (exit_code.h).
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace roundhouse {

// Something went wrong while working. kExitFailed.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
};

// What the user gave is wrong (command line, config, model directory, text): name the file and the line, key or
// tensor. kExitWrongInput.
class InputError : public Error {
 public:
  explicit InputError(const std::string& what) : Error(what) {}
};

// Another job has the run. kExitInUse.
class InUseError : public Error {
 public:
  explicit InUseError(const std::string& what) : Error(what) {}
};

// A node of the job does not fit the others; thrown alike on all ranks, naming it. kExitBadNode.
class BadNodeError : public Error {
 public:
  explicit BadNodeError(const std::string& what) : Error(what) {}
};

// For what only a mistake of ours can break; stays on in release and names the call site.
inline void require(bool ok, const char* what,
                    std::source_location where = std::source_location::current()) {
  if (!ok) {
    throw Error(std::string("internal error: ") + what + " (" + where.file_name() + ":" +
                std::to_string(where.line()) + ")");
  }
}

}  // namespace roundhouse
