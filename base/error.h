// Two ways to fail. Both carry one line that says what and where; main prints it and picks the exit code.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace roundhouse {

// Something went wrong while working. Exit code 1.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& what) : std::runtime_error(what) {}
};

// What the user gave is wrong (command line, config, model directory, text): name the file and the line, key or
// tensor. Exit code 2.
class InputError : public Error {
 public:
  explicit InputError(const std::string& what) : Error(what) {}
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
