// Files: read whole, in pieces or mapped, and written so that a reader sees the old content or the new one, never a part.
//
// Only regular files are opened: a pipe or a device, which could make a reader wait for ever, is refused at once. Where a file
// cannot be read, InputError says what the user has to mend (it is missing, not a file, without permission), and Error
// what the disk or the network did, with its errno. Errors of the second kind that may pass by themselves (EIO, ESTALE, EAGAIN,
// ETIMEDOUT) are met by trying again for about a second first.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/unique.h"

namespace roundhouse {

using Descriptor = Unique<int, &::close>;

// open() of a regular file; `flags` as there (a new file gets mode 0666). Throws as said above, naming the path.
Descriptor open_regular_file(const std::filesystem::path& path, int flags);

// A regular file, read from a byte on by pread(), not mmap: a failing disk is an error then, not a signal.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path, std::uint64_t from = 0);
  std::uint64_t size() const { return size_; }  // when it was opened
  // Fills `into` from where the last call ended; returns how many bytes, fewer only at the end.
  std::size_t read(std::span<std::byte> into);

 private:
  std::filesystem::path path_;
  Descriptor file_;
  std::uint64_t size_ = 0;
  std::uint64_t inode_ = 0;
  std::uint64_t at_;
};

// The lines of a regular file, each without its '\n', in the memory of the longest.
class LineReader {
 public:
  explicit LineReader(const std::filesystem::path& path, std::uint64_t from = 0);
  bool next(std::string& line);          // false after the last
  bool ended() const { return ended_; }  // had the line that next() gave last its '\n'?

 private:
  InputFile file_;
  std::string buffer_;
  std::size_t used_ = 0;  // of it
  bool ended_ = false;
};

// Throws InputError naming the path: missing, a directory, unreadable, or longer than `limit` bytes.
std::string read_text_file(const std::filesystem::path& path,
                           std::size_t limit = std::size_t{1} << 32);

// Length of a regular file; nothing if there is none. A network file system may go on saying that a file is not there which
// another machine has just renamed into its place; so its folder is read anew before that is believed, and where the folder lists
// it, it is looked for until it can be opened. Throws Error when `patience` is over.
inline constexpr std::chrono::milliseconds kVisibilityPatience{120'000};
std::optional<std::uint64_t> bytes_of_file(
    const std::filesystem::path& path, std::chrono::milliseconds patience = kVisibilityPatience);

// Returns once this machine sees a file of so many bytes that another one is known to have written. Throws Error, saying what was
// seen instead, when `patience` is over.
void wait_until_visible(const std::filesystem::path& path, std::uint64_t bytes,
                        std::chrono::milliseconds patience = kVisibilityPatience);

// What can be known of a file without reading it. `changed`, the time of the last change of its state, cannot be set back.
struct FileFacts {
  std::uint64_t bytes = 0;
  std::int64_t modified = 0, changed = 0;  // nanoseconds since 1970
};

// Read-only, of a whole file. Throws InputError naming the path. One that is cut short meanwhile ends the process, named (SIGBUS).
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Of the file that is mapped, as it was then, whatever has its name by now.
  const FileFacts& facts() const { return facts_; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  FileFacts facts_;
};

// Takes the pages that lie wholly in `bytes`, a part of a MappedFile, out of this process's memory. They are still there: the
// next touch reads them again, mostly from the system's cache.
void release_mapped_pages(std::span<const std::byte> bytes);

// Runs `work`. What std::filesystem throws becomes one of the errors above, naming what failed, the path, why and what to do.
void with_file_errors_named(const std::function<void()>& work);

// Calls visit() for all that is below a folder, a folder before what is in it; where visit() says false of a folder, not for that.
// Links are not followed. What other processes remove meanwhile is passed over. Throws std::filesystem::filesystem_error
// where a folder cannot be listed.
void visit_below(const std::filesystem::path& folder,
                 const std::function<bool(const std::filesystem::directory_entry&)>& visit);

// Calls write(temp) for a temporary name beside `path`, then fsyncs that file, renames it to `path` and fsyncs the
// directory. Makes the directory where needed. If anything fails the temporary file is removed, `path` is as it was,
// and Error says why (a full disk says so). `writer` becomes part of the temporary name. Concurrent writers must use different paths, or names: the last one to end counts. What write_guard.h throws passes through.
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path& temp)>& write,
                      const std::string& writer = "");
void write_text_atomically(const std::filesystem::path& path, std::string_view text,
                           const std::string& writer = "");

}  // namespace roundhouse
