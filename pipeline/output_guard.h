// Keeps two processes from writing one output folder at a time: a run and an `export` beside it, two of those.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "base/file.h"

namespace roundhouse {

// Holds an fcntl lock on DIRECTORY.lock while it lives; the file goes with it. Where the file system has no locks there is no
// guard. On one process of a group of ranks.
class OutputGuard {
 public:
  // Waits while another process holds it, calling `say` once with a line about that, and `tick` again and again.
  OutputGuard(const std::filesystem::path& directory,
              const std::function<void(const std::string&)>& say,
              const std::function<void()>& tick);
  ~OutputGuard();
  OutputGuard(const OutputGuard&) = delete;
  OutputGuard& operator=(const OutputGuard&) = delete;

 private:
  std::filesystem::path path_;
  Descriptor file_;
};

}  // namespace roundhouse
