#include "pipeline/start/scratch.h"

#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cstdlib>

namespace roundhouse {
namespace {

bool is_in_memory(const std::filesystem::path& folder) {
  struct statfs facts {};
  return ::statfs(folder.c_str(), &facts) == 0 &&
         (facts.f_type == TMPFS_MAGIC || facts.f_type == RAMFS_MAGIC);
}

}  // namespace

std::filesystem::path local_scratch(const std::filesystem::path& otherwise) {
  for (const char* const name : {"SLURM_TMPDIR", "TMPDIR"}) {
    const char* const value = std::getenv(name);
    if (value == nullptr || *value == '\0') continue;
    std::error_code ignored;
    if (std::filesystem::is_directory(value, ignored) && ::access(value, W_OK | X_OK) == 0 &&
        !is_in_memory(value)) {
      return value;
    }
  }
  return otherwise;
}

std::filesystem::path scratch_folder(const RunConfig& config) {
  return config.scratch.empty() ? local_scratch(config.run / "scratch") : config.scratch;
}

}  // namespace roundhouse
