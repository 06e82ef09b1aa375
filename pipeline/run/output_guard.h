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
  // Waits while another process holds it, calling `say` once with a line about that. Throws Error when `go_on`, which is called again
  // and again, says false, and after ten minutes.
  OutputGuard(const std::filesystem::path& directory,
              const std::function<void(const std::string&)>& say,
              const std::function<bool()>& go_on);
  ~OutputGuard();
  OutputGuard(const OutputGuard&) = delete;
  OutputGuard& operator=(const OutputGuard&) = delete;

 private:
  std::filesystem::path path_;
  Descriptor file_;
};

}  // namespace roundhouse
