#include "pipeline/run/output_guard.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "base/error.h"

namespace roundhouse {
namespace {

enum class Try { kTaken, kBusy, kNoLocks };

Try try_lock(int descriptor) {
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  while (::fcntl(descriptor, F_OFD_SETLK, &lock) != 0) {
    if (errno == EINTR) continue;
    return errno == EAGAIN || errno == EACCES ? Try::kBusy : Try::kNoLocks;
  }
  return Try::kTaken;
}

// The holder removes the file at its end: a lock on one that has gone guards nothing.
bool is_still_there(int descriptor, const std::filesystem::path& path) {
  struct stat held {
  }, there{};
  return ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &there) == 0 &&
         held.st_dev == there.st_dev && held.st_ino == there.st_ino;
}

}  // namespace

OutputGuard::OutputGuard(const std::filesystem::path& directory,
                         const std::function<void(const std::string&)>& say,
                         const std::function<bool()>& go_on)
    : path_(directory.native() + ".lock") {
  std::filesystem::create_directories(path_.parent_path());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(10);
  for (bool said = false;;) {
    if (!go_on() || std::chrono::steady_clock::now() > deadline) {
      throw Error(directory.string() + " is being written by another process, which holds " +
                  path_.string() + ": try again when it has ended");
    }
    file_ = open_regular_file(path_, O_RDWR | O_CREAT);
    const Try outcome = try_lock(file_.get());
    if (outcome == Try::kNoLocks) return;
    if (outcome == Try::kTaken && is_still_there(file_.get(), path_)) return;
    if (outcome == Try::kTaken) continue;
    if (!said) say(directory.string() + ": another process is writing it; waiting for its end");
    said = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

OutputGuard::~OutputGuard() {
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);  // before the lock goes
}

}  // namespace roundhouse
