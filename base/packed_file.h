// Files that gzip (RFC 1952) or Zstandard (RFC 8878) made smaller, by what they begin with and not by their names. What a file
// holds is what is in it when it is unpacked: other files are taken as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/file.h"

namespace roundhouse {

enum class Packing { kNone, kGzip, kZstd };
Packing packing_of(std::string_view content);
const char* name_of(Packing packing);  // "gzip", "zstd"; kNone: ""

// Most that a file of so many bytes may hold: what real texts are unpacked to is five or ten times as long.
constexpr std::uint64_t most_unpacked(std::uint64_t bytes) {
  return (std::uint64_t{1} << 26) + 256 * bytes;
}

// Calls `take` with the content of a file of either kind, one part after another, in bounded memory. Several members or frames
// in a row are one content. Returns what the file is. Throws InputError naming the file: damaged, cut short, longer than
// most_unpacked(), zstd's window above 128 MiB.
Packing read_content(const std::filesystem::path& path,
                     const std::function<void(std::span<const std::byte>)>& take);
std::string xxh3_hex_of_content(const std::filesystem::path& path);

// The content, mapped: of a packed file, unpacked into a file in the system's folder for temporary ones (TMPDIR), which is gone
// with this process. Calls `tick` now and then. Throws what read_content() does, and Error naming that folder where it is full.
class MappedContent {
 public:
  MappedContent(const std::filesystem::path& path, const std::function<void()>& tick);
  Packing packing() const { return packing_; }
  std::span<const std::byte> bytes() const { return file_.bytes(); }

 private:
  Packing packing_ = Packing::kNone;
  MappedFile file_;
};

}  // namespace roundhouse
