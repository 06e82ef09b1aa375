// For LD_PRELOAD: makes calls fail as a broken file system would.
//
//   FAIL_CALLS="CALL ERRNO NAME TIMES;..."     CALL: open, pread or flock; files whose path contains NAME; TIMES < 0: always
//
// With ERRNO 0 the call succeeds, a second later.
//
// "open" is every call that opens, "pread" every call that reads.
#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

struct Rule {
  char call[16];
  int error;
  char name[200];
  int times;
};

// How often each rule has struck, in this process.
std::array<int, 16> struck{};

bool fails(const char* call, const char* path) {
  const char* rules = std::getenv("FAIL_CALLS");
  for (std::size_t i = 0; rules != nullptr && i < struck.size(); ++i) {
    Rule rule{};
    if (std::sscanf(rules, "%15s %d %199s %d", rule.call, &rule.error, rule.name, &rule.times) ==
            4 &&
        std::strcmp(rule.call, call) == 0 && std::strstr(path, rule.name) != nullptr &&
        (rule.times < 0 || struck[i] < rule.times)) {
      ++struck[i];
      if (rule.error == 0) {
        ::usleep(1'000'000);
        return false;
      }
      errno = rule.error;
      return true;
    }
    rules = std::strchr(rules, ';');
    if (rules != nullptr) ++rules;
  }
  return false;
}

bool fails(const char* call, int descriptor) {
  std::array<char, 4096> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(descriptor);
  return ::readlink(link.c_str(), path.data(), path.size() - 1) > 0 && fails(call, path.data());
}

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

int open_or_fail(const char* name, const char* path, int flags, int mode) {
  if (fails("open", path)) return -1;
  return real<int (*)(const char*, int, ...)>(name)(path, flags, mode);
}

ssize_t pread_or_fail(const char* name, int file, void* into, std::size_t bytes, off_t at) {
  if (fails("pread", file)) return -1;
  return real<ssize_t (*)(int, void*, std::size_t, off_t)>(name)(file, into, bytes, at);
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = va_arg(more, int);
  va_end(more);
  return open_or_fail("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list more;
  va_start(more, flags);
  const int mode = va_arg(more, int);
  va_end(more);
  return open_or_fail("open64", path, flags, mode);
}

ssize_t read(int file, void* into, size_t bytes) {
  if (fails("pread", file)) return -1;
  return real<ssize_t (*)(int, void*, std::size_t)>("read")(file, into, bytes);
}

ssize_t pread(int file, void* into, size_t bytes, off_t at) {
  return pread_or_fail("pread", file, into, bytes, at);
}

ssize_t pread64(int file, void* into, size_t bytes, off_t at) {
  return pread_or_fail("pread64", file, into, bytes, at);
}

int flock(int file, int operation) {
  if (fails("flock", file)) return -1;
  return real<int (*)(int, int)>("flock")(file, operation);
}
}
