// Files: read whole, mapped, and written so that a reader sees the old content or the new one, never a part.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace roundhouse {

// Throws InputError naming the path: missing, a directory, unreadable, or longer than `limit` bytes.
std::string read_text_file(const std::filesystem::path& path,
                           std::size_t limit = std::size_t{1} << 32);

// A read-only mapping of a whole file. Throws InputError naming the path.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Takes the pages that lie wholly in `bytes`, a part of a MappedFile, out of this process's memory. They are still there: the
// next touch reads them again, mostly from the system's cache.
void release_mapped_pages(std::span<const std::byte> bytes);

// Calls write(temp) for a temporary name beside `path`, then fsyncs that file, renames it to `path` and fsyncs the
// directory. Makes the directory where needed. If anything fails the temporary file is removed, `path` is as it was,
// and Error says why (a full disk says so). Concurrent writers must use different paths.
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path& temp)>& write);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);

}  // namespace roundhouse
