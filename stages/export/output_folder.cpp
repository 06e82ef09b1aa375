#include "stages/export/output_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "base/error.h"
#include "base/unique.h"
#include "base/write_guard.h"
#include "stages/export/sha256sums.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

void sync_directory(const fs::path& directory) {
  const Unique<int, &::close> handle(::open(directory.c_str(), O_RDONLY | O_DIRECTORY));
  if (handle.get() < 0 || ::fsync(handle.get()) != 0) {
    throw Error("cannot sync " + directory.string() + ": " +
                std::generic_category().message(errno));
  }
}

}  // namespace

fs::path output_path(const fs::path& directory) {
  const fs::path path = fs::absolute(directory).lexically_normal();
  return path.has_filename() ? path : path.parent_path();
}

fs::path beside(const fs::path& directory, const char* suffix) {
  return directory.parent_path() / (directory.filename().string() + suffix);
}

void check_replaceable(const fs::path& path, bool known) {
  const fs::path directory = output_path(path);
  if (!fs::exists(fs::symlink_status(directory))) return;
  const bool ours = fs::is_directory(directory) && !fs::is_symlink(directory) &&
                    (known || fs::is_empty(directory) || fs::exists(directory / kSums));
  if (!ours) {
    throw InputError(directory.string() + " exists and is not an earlier export (it has no " +
                     kSums + "): remove it, or choose another directory");
  }
}

void move_into_place(const fs::path& partial, const fs::path& directory) {
  pass_write_guard();
  const fs::path old = beside(directory, ".old");
  fs::remove_all(old);
  const bool replaces = fs::exists(directory);
  if (replaces) fs::rename(directory, old);
  std::error_code failure;
  fs::rename(partial, directory, failure);
  if (failure) {
    std::error_code ignored;
    if (replaces) fs::rename(old, directory, ignored);
    throw Error("cannot rename " + partial.string() + " to " + directory.string() + ": " +
                failure.message());
  }
  sync_directory(directory.parent_path());
  fs::remove_all(old);
}

}  // namespace roundhouse
