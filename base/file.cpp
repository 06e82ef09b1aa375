#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/write_guard.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

std::string reason(int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  return (full ? "disk full: " : "") + std::generic_category().message(error);
}

// What the user has to mend, as opposed to the disk or the network.
bool is_users_to_mend(int error) {
  constexpr std::array kOfUser = {ENOENT, ENOTDIR, EISDIR,    EACCES,      EPERM,
                                  EROFS,  ELOOP,   ENOTEMPTY, ENAMETOOLONG};
  return std::ranges::find(kOfUser, error) != kOfUser.end();
}

[[noreturn]] void fail(const char* verb, const fs::path& path, int error) {
  const std::string what = std::string("cannot ") + verb + " " + path.string() + ": ";
  if (is_users_to_mend(error)) throw InputError(what + reason(error));
  // What a socket answers, and a device that is not there.
  if (error == ENXIO || error == ENODEV) throw InputError(what + "it is not a regular file");
  throw Error(fmt::format("{}{} (errno {})", what, reason(error), error));
}

// Calls a system call again where its failure may pass by itself: a server that starts anew, a lost connection to it, a file
// handle that the server has forgotten (`before_retry` is told the errno and may get another).
template <class Call, class Before>
auto call_patiently(const Call& call, const Before& before_retry) {
  constexpr std::array kPauses = {std::chrono::milliseconds(50), std::chrono::milliseconds(250),
                                  std::chrono::milliseconds(700)};
  std::size_t tries = 0;
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno == EINTR) continue;
    const int error = errno;
    const bool may_pass = error == EIO || error == ESTALE || error == EAGAIN || error == ETIMEDOUT;
    if (!may_pass || tries == kPauses.size()) return result;
    std::this_thread::sleep_for(kPauses[tries++]);
    before_retry(error);
  }
}

struct stat facts_of(const Descriptor& file, const fs::path& path) {
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) fail("read", path, errno);
  return facts;
}

// Makes what was written under `path`, a file or a directory, survive a power cut.
void sync_to_disk(const fs::path& path, int flags) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
  if (descriptor < 0) throw Error(reason(errno) + " (" + path.string() + ")");
  const Descriptor file(descriptor);
  // Some network file systems cannot sync a directory and answer EINVAL; there is nothing more to
  // do there.
  if (::fsync(file.get()) != 0 && !(errno == EINVAL && (flags & O_DIRECTORY) != 0)) {
    throw Error(reason(errno) + " (" + path.string() + ")");
  }
}

fs::path directory_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Of a regular file, by opening it: a network file system asks its server then. Nothing: there is none, as far as is known here.
std::optional<std::uint64_t> length_now(const fs::path& path) {
  const int descriptor = call_patiently(
      [&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); },
      [](int) {});
  if (descriptor < 0) {
    if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
    if (errno == ENXIO || errno == ENODEV) return 0;  // a socket, a device that is gone
    fail("read", path, errno);
  }
  const Descriptor file(descriptor);
  return static_cast<std::uint64_t>(facts_of(file, path).st_size);
}

// Reads the folder anew, which has what is remembered of its entries looked at again.
bool is_listed(const fs::path& path) {
  const fs::path directory = directory_of(path);
  std::error_code error;
  fs::directory_iterator at(directory, error);
  if (error) return path.has_parent_path() && directory != path && is_listed(directory);
  bool found = false;  // all of it is read, whatever is found
  for (const fs::directory_iterator end; !error && at != end; at.increment(error)) {
    std::error_code ignored;
    found = found || (at->path().filename() == path.filename() && !at->is_symlink(ignored));
  }
  return found;
}

std::string this_host() {
  std::array<char, 256> host{};
  ::gethostname(host.data(), host.size() - 1);
  return host.data();
}
constexpr const char* kListedOnly = "its folder lists it, but it cannot be opened here";
constexpr const char* kNfs =
    ". Do all nodes see the same file system? On NFS, mount it with lookupcache=positive";

// Pauses between looks, longer and longer, until `patience` is over.
class Looking {
 public:
  explicit Looking(milliseconds patience)
      : deadline_(std::chrono::steady_clock::now() + patience) {}
  bool again() {
    const auto left = deadline_ - std::chrono::steady_clock::now();
    if (left <= milliseconds(0)) return false;
    std::this_thread::sleep_for(
        std::min<std::chrono::steady_clock::duration>(std::exchange(pause_, pause_ * 2), left));
    pause_ = std::min(pause_, milliseconds(1000));
    return true;
  }

 private:
  std::chrono::steady_clock::time_point deadline_;
  milliseconds pause_{10};
};

// A new directory is an entry in its parent, which has to reach the disk as well.
void make_directories(const fs::path& directory) {
  std::vector<fs::path> missing;
  for (fs::path at = directory; !at.empty() && !fs::exists(at); at = at.parent_path()) {
    missing.push_back(at);
  }
  fs::create_directories(directory);
  for (const fs::path& made : missing) sync_to_disk(directory_of(made), O_DIRECTORY);
}

const char* remedy(int error) {
  switch (error) {
    case EACCES:
    case EPERM:
      return ": give this user access to it, or name another path";
    case ENOTDIR:
      return ": something on the way to it is a file; name another path";
    case EROFS:
    case ENAMETOOLONG:
    case ELOOP:
      return ": name another path";
    case ENOSPC:
    case EDQUOT:
      return ": make room there";
    default:
      return "";
  }
}

bool has_gone(const std::error_code& error) {
  return error == std::errc::no_such_file_or_directory || error.value() == ESTALE;
}

// Libraries that write for us do not always pass on why a write failed.
bool is_disk_full(const fs::path& directory) {
  std::error_code ignored;
  const fs::space_info space = fs::space(directory, ignored);
  return !ignored && space.available < 4096;
}

[[noreturn]] void fail_to_write(const fs::path& path, const std::string& why, bool full) {
  const bool said = why.find("disk full") != std::string::npos;
  throw Error("cannot write " + path.string() + ": " + (full && !said ? "disk full: " : "") + why);
}

// Removes a file unless told that it is no longer there.
class TemporaryFile {
 public:
  explicit TemporaryFile(fs::path path) : path_(std::move(path)) { remove(); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!renamed_) remove();
  }
  const fs::path& path() const { return path_; }
  void set_renamed() { renamed_ = true; }

 private:
  void remove() const {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  fs::path path_;
  bool renamed_ = false;
};

}  // namespace

std::optional<std::uint64_t> bytes_of_file(const fs::path& path, milliseconds patience) {
  std::optional<std::uint64_t> bytes = length_now(path);
  for (Looking looking(patience); !bytes && is_listed(path);) {
    bytes = length_now(path);
    if (!bytes && !looking.again()) {
      throw Error("cannot see " + path.string() + " on " + this_host() + ": " + kListedOnly + kNfs);
    }
  }
  return bytes;
}

void wait_until_visible(const fs::path& path, std::uint64_t bytes, milliseconds patience) {
  std::optional<std::uint64_t> found = length_now(path);
  bool listed = false;
  for (Looking looking(patience); found != bytes; found = length_now(path)) {
    listed = is_listed(path);  // for its effect, too: it tells the file system to look
    if (looking.again()) continue;
    throw Error(
        fmt::format("cannot see {} on {}: another rank wrote it with {} bytes, and after {} s {}{}",
                    path.string(), this_host(), bytes, patience.count() / 1000,
                    found    ? fmt::format("it has {} bytes here", *found)
                    : listed ? std::string(kListedOnly)
                             : std::string("it is not in its folder here"),
                    kNfs));
  }
}

Descriptor open_regular_file(const fs::path& path, int flags) {
  // Without O_NONBLOCK the opening of a pipe waits for its other end, and that of some devices for ever. On what passes the
  // check below it has no effect.
  const int descriptor = call_patiently(
      [&] { return ::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0666); },
      [](int) {});
  const char* const verb = (flags & O_ACCMODE) == O_RDONLY ? "read" : "open";
  if (descriptor < 0) fail(verb, path, errno);
  Descriptor file(descriptor);
  const struct stat facts = facts_of(file, path);
  if (!S_ISREG(facts.st_mode)) {
    throw InputError(std::string("cannot ") + verb + " " + path.string() + ": " +
                     (S_ISDIR(facts.st_mode) ? "it is a directory" : "it is not a regular file"));
  }
  return file;
}

InputFile::InputFile(fs::path path, std::uint64_t from)
    : path_(std::move(path)), file_(open_regular_file(path_, O_RDONLY)), at_(from) {
  const struct stat facts = facts_of(file_, path_);
  size_ = static_cast<std::uint64_t>(facts.st_size);
  inode_ = facts.st_ino;
}

std::size_t InputFile::read(std::span<std::byte> into) {
  std::size_t done = 0;
  const auto open_again = [this](int error) {
    if (error != ESTALE) return;
    Descriptor other = open_regular_file(path_, O_RDONLY);
    if (facts_of(other, path_).st_ino != inode_) {
      throw Error("cannot read " + path_.string() + ": it was replaced meanwhile");
    }
    file_ = std::move(other);
  };
  while (done < into.size()) {
    const ssize_t part = call_patiently(
        [&] {
          return ::pread(file_.get(), into.data() + done, into.size() - done,
                         static_cast<off_t>(at_));
        },
        open_again);
    if (part < 0) fail("read", path_, errno);
    if (part == 0) break;  // the end, which may have come nearer meanwhile
    done += static_cast<std::size_t>(part);
    at_ += static_cast<std::uint64_t>(part);
  }
  return done;
}

LineReader::LineReader(const fs::path& path, std::uint64_t from) : file_(path, from) {}

bool LineReader::next(std::string& line) {
  line.clear();
  for (;;) {
    const std::size_t end = buffer_.find('\n', used_);
    ended_ = end != std::string::npos;
    line.append(buffer_, used_, ended_ ? end - used_ : std::string::npos);
    if (ended_) {
      used_ = end + 1;
      return true;
    }
    constexpr std::size_t kPart = std::size_t{1} << 16;
    buffer_.resize(kPart);
    buffer_.resize(file_.read(std::as_writable_bytes(std::span(buffer_))));
    used_ = 0;
    if (buffer_.empty()) return !line.empty();
  }
}

std::string read_text_file(const fs::path& path, std::size_t limit) {
  InputFile file(path);
  if (file.size() > limit) {
    throw InputError(fmt::format("cannot read {}: it has {} bytes, and at most {} are expected",
                                 path.string(), file.size(), limit));
  }
  std::string text(file.size(), '\0');
  text.resize(file.read(std::as_writable_bytes(std::span(text))));
  return text;
}

namespace {

// What is mapped, for a signal handler: no locks, no memory that could go. Where all places are taken there is no name.
struct Mapping {
  std::atomic<std::uintptr_t> begin{0};  // 0: free
  std::atomic<std::uintptr_t> end{0};
  std::array<char, 1024> path{};  // of a longer one the end
  std::atomic<bool> taken{false};
};
std::array<Mapping, 1024> mappings;
struct sigaction action_before {};

void write_to_stderr(const char* text) {
  std::size_t length = std::strlen(text);
  while (length > 0) {
    const ssize_t part = ::write(STDERR_FILENO, text, length);
    if (part <= 0) return;
    text += part;
    length -= static_cast<std::size_t>(part);
  }
}

extern "C" void on_bus_error(int, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    if (at < mapping.begin || at >= mapping.end) continue;
    write_to_stderr("roundhouse: cannot read ");
    write_to_stderr(mapping.path.data());
    write_to_stderr(": it was cut short, or its disk failed, after it was opened\n");
    ::_exit(1);
  }
  ::sigaction(SIGBUS, &action_before, nullptr);  // somebody else's: the same access meets it again
}

void note_mapping(const void* data, std::size_t size, const fs::path& path) {
  [[maybe_unused]] static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    return ::sigaction(SIGBUS, &action, &action_before) == 0;
  }();
  for (Mapping& mapping : mappings) {
    if (mapping.taken.exchange(true)) continue;
    const std::string& name = path.native();
    mapping.path.fill('\0');
    name.copy(mapping.path.data(), mapping.path.size() - 1,
              name.size() - std::min(name.size(), mapping.path.size() - 1));
    mapping.end = reinterpret_cast<std::uintptr_t>(data) + size;
    mapping.begin = reinterpret_cast<std::uintptr_t>(data);
    return;
  }
}

void forget_mapping(const void* data) {
  for (Mapping& mapping : mappings) {
    if (mapping.begin != reinterpret_cast<std::uintptr_t>(data)) continue;
    mapping.begin = mapping.end = 0;
    mapping.taken = false;
    return;
  }
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) {
  const Descriptor file = open_regular_file(path, O_RDONLY);
  const struct stat facts = facts_of(file, path);
  const auto nanoseconds = [](const timespec& time) {
    return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  size_ = static_cast<std::size_t>(facts.st_size);
  facts_ = {size_, nanoseconds(facts.st_mtim), nanoseconds(facts.st_ctim)};
  if (size_ == 0) return;  // mmap refuses a length of 0
  void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) fail("read", path, errno);
  data_ = static_cast<const std::byte*>(address);
  note_mapping(data_, size_, path);
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      facts_(other.facts_) {}

void release_mapped_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size()) / page * page;
  // A hint: where it fails, memory is only given back later.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void with_file_errors_named(const std::function<void()>& work) {
  try {
    work();
  } catch (const fs::filesystem_error& error) {
    // "cannot create directories: Permission denied", where what() of this class puts more around it.
    std::string doing = error.std::system_error::what();
    doing = doing.substr(0, doing.find(": "));
    if (doing.starts_with("cannot ")) doing = doing.substr(7);
    std::string what = "cannot " + doing + " " + error.path1().string();
    if (!error.path2().empty()) what += " and " + error.path2().string();
    const int number = error.code().value();
    what += ": " + reason(number) + remedy(number);
    if (is_users_to_mend(number)) throw InputError(what);
    throw Error(fmt::format("{} (errno {})", what, number));
  }
}

void visit_below(const fs::path& folder,
                 const std::function<bool(const fs::directory_entry&)>& visit) {
  std::error_code error, gone;
  for (fs::directory_iterator at(folder, error), end; !error && at != end; at.increment(error)) {
    const bool inside = visit(*at);
    if (inside && at->is_directory(gone) && !at->is_symlink(gone)) visit_below(at->path(), visit);
  }
  if (error && !has_gone(error)) throw fs::filesystem_error("cannot list", folder, error);
}

void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write,
                      const std::string& writer) {
  pass_write_guard();
  const fs::path directory = directory_of(path);
  const auto make_directory = [&] {
    try {
      with_file_errors_named([&] { make_directories(directory); });
    } catch (const std::exception& e) {
      throw Error(e.what());  // whatever it is: the content is not at fault
    }
  };
  TemporaryFile temp(fs::path(path.native() + (writer.empty() ? "" : "." + writer) + ".tmp"));
  // As long as there is no file in it, other processes may remove the directory, since it is empty, and those above it, and make them again.
  int tries = 0;
  const auto try_again = [&] {
    std::error_code ignored;
    return !fs::exists(temp.path(), ignored) && ++tries < 10;
  };
  try {
    for (bool written = false; !written;) {
      try {
        make_directory();
        write(temp.path());
        sync_to_disk(temp.path(), 0);
        written = true;
      } catch (const InputError&) {
        throw;
      } catch (const Error&) {
        if (!try_again()) throw;
      }
    }
  } catch (const InputError&) {
    throw;  // the content is at fault, not the disk
  } catch (const std::exception& e) {
    fail_to_write(path, e.what(), is_disk_full(directory));
  }
  pass_write_guard();
  if (::rename(temp.path().c_str(), path.c_str()) != 0) {
    fail_to_write(path, reason(errno), false);
  }
  temp.set_renamed();
  try {
    sync_to_disk(directory, O_DIRECTORY);
  } catch (const std::exception& e) {
    // Whoever saw the file first may have removed it, and the directory, which was empty then.
    std::error_code ignored;
    if (fs::exists(path, ignored)) fail_to_write(path, e.what(), false);
  }
}

void write_text_atomically(const fs::path& path, std::string_view text, const std::string& writer) {
  const auto write = [&](const fs::path& temp) {
    const int descriptor = ::open(temp.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (descriptor < 0) throw Error(reason(errno));
    Descriptor file(descriptor);
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t part = ::write(file.get(), text.data() + done, text.size() - done);
      if (part < 0 && errno == EINTR) continue;
      if (part < 0) throw Error(reason(errno));
      done += static_cast<std::size_t>(part);
    }
    if (::close(file.release()) != 0) throw Error(reason(errno));  // some disks are full only here
  };
  write_atomically(path, write, writer);
}

}  // namespace roundhouse
