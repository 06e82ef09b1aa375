// Offsets and signatures are those of PKWARE's APPNOTE.TXT 6.3: 4.3.7 (local header), 4.3.12 (central directory), 4.3.14 to
// 4.3.16 (its end), 4.5.3 (ZIP64's extra field).
#include "model/checkpoint/zip.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/error.h"
#include "base/json_file.h"

namespace roundhouse {
namespace {

constexpr std::uint32_t kLocalHeader = 0x04034b50;
constexpr std::uint32_t kCentralHeader = 0x02014b50;
constexpr std::uint32_t kEnd = 0x06054b50;
constexpr std::uint32_t kEnd64 = 0x06064b50;
constexpr std::uint32_t kEnd64Locator = 0x07064b50;
constexpr std::size_t kLocalHeaderBytes = 30;
constexpr std::size_t kCentralHeaderBytes = 46;
constexpr std::size_t kEndBytes = 22;
constexpr std::size_t kEnd64Bytes = 56;
constexpr std::size_t kEnd64LocatorBytes = 20;
constexpr std::uint32_t kIn64 = 0xffffffff;  // the value is in the ZIP64 field
constexpr std::uint16_t kZip64Field = 1;

class Archive {
 public:
  Archive(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  std::map<std::string, std::span<const std::byte>> entries() const {
    const Directory directory = find_directory();
    const std::size_t end = directory.offset + part(directory.offset, directory.bytes).size();
    std::map<std::string, std::span<const std::byte>> entries;
    std::size_t at = directory.offset;
    while (at < end) {
      if (number<std::uint32_t>(at) != kCentralHeader) fail("damaged central directory");
      const std::size_t name_bytes = number<std::uint16_t>(at + 28);
      const std::size_t extra_bytes = number<std::uint16_t>(at + 30);
      const std::size_t comment_bytes = number<std::uint16_t>(at + 32);
      const auto name = part(at + kCentralHeaderBytes, name_bytes);
      const std::string text(reinterpret_cast<const char*>(name.data()), name.size());
      const auto data = data_of(text, at, at + kCentralHeaderBytes + name_bytes, extra_bytes);
      if (!entries.emplace(text, data).second) fail("entry " + in_quotes(text) + " stands twice");
      at += kCentralHeaderBytes + name_bytes + extra_bytes + comment_bytes;
    }
    return entries;
  }

 private:
  struct Directory {
    std::uint64_t offset, bytes;
  };

  [[noreturn]] void fail(const std::string& what) const { throw InputError(file_ + ": " + what); }

  std::span<const std::byte> part(std::uint64_t offset, std::uint64_t bytes) const {
    if (offset > bytes_.size() || bytes > bytes_.size() - offset) {
      fail("damaged ZIP archive: it points beyond its end");
    }
    return bytes_.subspan(offset, bytes);
  }
  // Little-endian.
  template <class T>
  T number(std::uint64_t offset) const {
    T value = 0;
    const auto bytes = part(offset, sizeof(T));
    for (std::size_t i = sizeof(T); i-- > 0;) {
      value = static_cast<T>(static_cast<std::uint64_t>(value) << 8 |
                             std::to_integer<std::uint64_t>(bytes[i]));
    }
    return value;
  }

  // A comment of up to 65,535 bytes may follow the end's record.
  std::size_t find_end() const {
    const std::size_t size = bytes_.size();
    for (std::size_t i = kEndBytes; i <= size && i <= kEndBytes + 0xffff; ++i) {
      const std::size_t at = size - i;
      if (number<std::uint32_t>(at) == kEnd &&
          at + kEndBytes + number<std::uint16_t>(at + 20) == size) {
        return at;
      }
    }
    fail("not a ZIP archive, or cut off");
  }

  Directory find_directory() const {
    const std::size_t end = find_end();
    if (end >= kEnd64LocatorBytes &&
        number<std::uint32_t>(end - kEnd64LocatorBytes) == kEnd64Locator) {
      const auto end64 = number<std::uint64_t>(end - kEnd64LocatorBytes + 8);
      (void)part(end64, kEnd64Bytes);
      if (number<std::uint32_t>(end64) != kEnd64) fail("damaged ZIP64 archive");
      return {number<std::uint64_t>(end64 + 48), number<std::uint64_t>(end64 + 40)};
    }
    return {number<std::uint32_t>(end + 16), number<std::uint32_t>(end + 12)};
  }

  std::span<const std::byte> data_of(const std::string& name, std::size_t header, std::size_t extra,
                                     std::size_t extra_bytes) const {
    const auto flags = number<std::uint16_t>(header + 8);
    const auto method = number<std::uint16_t>(header + 10);
    if (method != 0 || (flags & 1) != 0) {
      fail("entry " + in_quotes(name) + " is compressed or encrypted");
    }
    // Those of the three that do not fit 32 bits follow in the ZIP64 field, in this order.
    std::uint64_t size = number<std::uint32_t>(header + 24);
    std::uint64_t stored = number<std::uint32_t>(header + 20);
    std::uint64_t offset = number<std::uint32_t>(header + 42);
    for (std::size_t at = extra; at + 4 <= extra + extra_bytes;) {
      const auto id = number<std::uint16_t>(at);
      const std::size_t end = at + 4 + number<std::uint16_t>(at + 2);
      at += 4;
      if (id == kZip64Field) {
        for (std::uint64_t* value : {&size, &stored, &offset}) {
          if (*value != kIn64 || at + 8 > end) continue;
          *value = number<std::uint64_t>(at);
          at += 8;
        }
      }
      at = end;
    }
    if (size != stored) fail("entry " + in_quotes(name) + ": its two sizes differ");
    (void)part(offset, kLocalHeaderBytes);
    if (number<std::uint32_t>(offset) != kLocalHeader) {
      fail("entry " + in_quotes(name) + ": no entry where the directory says");
    }
    const std::uint64_t begin = offset + kLocalHeaderBytes + number<std::uint16_t>(offset + 26) +
                                number<std::uint16_t>(offset + 28);
    return part(begin, size);
  }

  std::span<const std::byte> bytes_;
  const std::string& file_;
};

}  // namespace

std::map<std::string, std::span<const std::byte>> read_stored_zip(
    std::span<const std::byte> archive, const std::string& file) {
  return Archive(archive, file).entries();
}

}  // namespace roundhouse
