// For LD_PRELOAD: one rank sees files late, as on a network file system whose cache remembers that there was no such file.
//
//   LATE_FILES="RANK SECONDS NAME MARK"     to this rank files whose path contains NAME are not there, neither by name nor in their
//                                           folder, until SECONDS after they were renamed or written, unless the rank made them itself.
//                                           MARK: made when one was hidden
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <mutex>
#include <set>
#include <string>

namespace {

struct Rule {
  int rank = -1;
  double seconds = 0;
  std::array<char, 200> name{};
  std::array<char, 400> mark{};
};

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

// Files that this process has opened to write, by inode: they keep that when they are renamed.
std::mutex own_mutex;
std::set<std::uint64_t>& own() {
  static std::set<std::uint64_t> inodes;
  return inodes;
}

int noted(int descriptor, int flags) {
  struct statx facts {};
  const auto look = real<int (*)(int, const char*, int, unsigned, struct statx*)>("statx");
  if (descriptor >= 0 && (flags & O_CREAT) != 0 &&
      look(descriptor, "", AT_EMPTY_PATH, STATX_INO, &facts) == 0) {
    const std::lock_guard lock(own_mutex);
    own().insert(facts.stx_ino);
  }
  return descriptor;
}

bool is_late(int folder, const char* path) {
  static const Rule rule = [] {
    Rule read;
    if (const char* text = std::getenv("LATE_FILES")) {
      (void)std::sscanf(text, "%d %lf %199s %399s", &read.rank, &read.seconds, read.name.data(),
                        read.mark.data());
    }
    return read;
  }();
  const char* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
  if (rank == nullptr || std::atoi(rank) != rule.rank) return false;
  if (path == nullptr || std::strstr(path, rule.name.data()) == nullptr) return false;
  struct statx facts {};
  const auto look = real<int (*)(int, const char*, int, unsigned, struct statx*)>("statx");
  if (look(folder, path, 0, STATX_CTIME | STATX_INO, &facts) != 0) return false;
  {
    const std::lock_guard lock(own_mutex);
    if (own().contains(facts.stx_ino)) return false;
  }
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  const double age = static_cast<double>(now.tv_sec - facts.stx_ctime.tv_sec) +
                     1e-9 * (static_cast<double>(now.tv_nsec) - facts.stx_ctime.tv_nsec);
  if (age >= rule.seconds) return false;
  const int mark =
      real<int (*)(const char*, int, ...)>("open")(rule.mark.data(), O_CREAT | O_WRONLY, 0600);
  if (mark >= 0) ::close(mark);
  errno = ENOENT;
  return true;
}

template <class Entry>
Entry* next_entry(const char* call, DIR* folder) {
  for (;;) {
    Entry* const entry = real<Entry* (*)(DIR*)>(call)(folder);
    if (entry == nullptr || !is_late(::dirfd(folder), entry->d_name)) return entry;
  }
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = va_arg(more, int);
  va_end(more);
  if (is_late(AT_FDCWD, path)) return -1;
  return noted(real<int (*)(const char*, int, ...)>("open")(path, flags, mode), flags);
}

int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = va_arg(more, int);
  va_end(more);
  if (is_late(AT_FDCWD, path)) return -1;
  return noted(real<int (*)(const char*, int, ...)>("open64")(path, flags, mode), flags);
}

int stat(const char* path, struct stat* facts) {
  if (is_late(AT_FDCWD, path)) return -1;
  return real<int (*)(const char*, struct stat*)>("stat")(path, facts);
}

int stat64(const char* path, struct stat64* facts) {
  if (is_late(AT_FDCWD, path)) return -1;
  return real<int (*)(const char*, struct stat64*)>("stat64")(path, facts);
}

int lstat(const char* path, struct stat* facts) {
  if (is_late(AT_FDCWD, path)) return -1;
  return real<int (*)(const char*, struct stat*)>("lstat")(path, facts);
}

int fstatat(int folder, const char* path, struct stat* facts, int flags) {
  if (is_late(folder, path)) return -1;
  return real<int (*)(int, const char*, struct stat*, int)>("fstatat")(folder, path, facts, flags);
}

struct dirent* readdir(DIR* folder) {
  return next_entry<dirent>("readdir", folder);
}

struct dirent64* readdir64(DIR* folder) {
  return next_entry<dirent64>("readdir64", folder);
}
}
