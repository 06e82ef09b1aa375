#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "base/unique.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

using Descriptor = Unique<int, &::close>;

std::string reason(int error) {
  const bool full = error == ENOSPC || error == EDQUOT;
  return (full ? "disk full: " : "") + std::generic_category().message(error);
}

Descriptor open_to_read(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw InputError("cannot read " + path.string() + ": " + reason(errno));
  return Descriptor(descriptor);
}

// The size of an open regular file.
std::size_t size_of_file(const Descriptor& file, const fs::path& path) {
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) {
    throw InputError("cannot read " + path.string() + ": " + reason(errno));
  }
  if (!S_ISREG(facts.st_mode)) {
    throw InputError("cannot read " + path.string() + ": " +
                     (S_ISDIR(facts.st_mode) ? "it is a directory" : "it is not a regular file"));
  }
  return static_cast<std::size_t>(facts.st_size);
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

// A new directory is an entry in its parent, which has to reach the disk as well.
void make_directories(const fs::path& directory) {
  std::vector<fs::path> missing;
  for (fs::path at = directory; !at.empty() && !fs::exists(at); at = at.parent_path()) {
    missing.push_back(at);
  }
  fs::create_directories(directory);
  for (const fs::path& made : missing) sync_to_disk(directory_of(made), O_DIRECTORY);
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

std::string read_text_file(const fs::path& path, std::size_t limit) {
  const Descriptor file = open_to_read(path);
  const std::size_t size = size_of_file(file, path);
  if (size > limit) {
    throw InputError("cannot read " + path.string() + ": it has " + std::to_string(size) +
                     " bytes, and at most " + std::to_string(limit) + " are expected");
  }
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t part = ::read(file.get(), text.data() + done, size - done);
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) throw InputError("cannot read " + path.string() + ": " + reason(errno));
    if (part == 0) break;  // it became shorter meanwhile
    done += static_cast<std::size_t>(part);
  }
  text.resize(done);
  return text;
}

MappedFile::MappedFile(const fs::path& path) {
  const Descriptor file = open_to_read(path);
  size_ = size_of_file(file, path);
  if (size_ == 0) return;  // mmap refuses a length of 0
  void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) {
    throw InputError("cannot map " + path.string() + ": " + reason(errno));
  }
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

void release_mapped_pages(std::span<const std::byte> bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(bytes.data()) + bytes.size()) / page * page;
  // A hint: where it fails, memory is only given back later.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  const fs::path directory = directory_of(path);
  try {
    make_directories(directory);
  } catch (const std::exception& e) {
    fail_to_write(path, e.what(), false);
  }

  TemporaryFile temp(fs::path(path.native() + ".tmp"));
  try {
    write(temp.path());
    sync_to_disk(temp.path(), 0);
  } catch (const InputError&) {
    throw;  // the content is at fault, not the disk
  } catch (const std::exception& e) {
    fail_to_write(path, e.what(), is_disk_full(directory));
  }
  if (::rename(temp.path().c_str(), path.c_str()) != 0) {
    fail_to_write(path, reason(errno), false);
  }
  temp.set_renamed();
  try {
    sync_to_disk(directory, O_DIRECTORY);
  } catch (const std::exception& e) {
    fail_to_write(path, e.what(), false);
  }
}

void write_text_atomically(const fs::path& path, std::string_view text) {
  write_atomically(path, [&](const fs::path& temp) {
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
  });
}

}  // namespace roundhouse
