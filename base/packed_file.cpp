#include "base/packed_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using std::string_view_literals::operator""sv;

constexpr std::size_t kPartBytes = std::size_t{1} << 20;
constexpr int kGzipOnly = 16 + MAX_WBITS;  // zlib's word for it
constexpr int kMaxWindowLog = 27;          // what `zstd -d` takes without being asked

using Take = std::function<void(std::span<const std::byte>)>;

// Hands on what is unpacked, and counts it.
class Output {
 public:
  Output(const fs::path& path, std::uint64_t packed, const Take& take)
      : path_(path), most_(most_unpacked(packed)), take_(take), part_(kPartBytes) {}

  std::span<std::byte> part() { return part_; }
  void give(std::size_t bytes) {
    total_ += bytes;
    if (total_ > most_) {
      fail(fmt::format("holds more than {} bytes, which no text does: unpack it yourself", most_));
    }
    if (bytes > 0) take_(std::span(part_).first(bytes));
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(path_.string() + ": " + what);
  }

 private:
  const fs::path& path_;
  std::uint64_t most_;
  const Take& take_;
  std::vector<std::byte> part_;
  std::uint64_t total_ = 0;
};

void close_inflate(z_stream* stream) { inflateEnd(stream); }

// `input` holds the first `size` bytes of the file.
void unpack_gzip(InputFile& file, std::vector<std::byte>& input, std::size_t size, Output& output) {
  z_stream stream{};
  if (inflateInit2(&stream, kGzipOnly) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, decltype(&close_inflate)> owner(&stream, close_inflate);
  bool within = true;  // a member
  for (; size > 0; size = file.read(input)) {
    stream.next_in = reinterpret_cast<Bytef*>(input.data());
    stream.avail_in = static_cast<uInt>(size);
    bool full = false;  // there may be more output without input
    while (stream.avail_in > 0 || full) {
      if (!within) {
        // Another member, or the zeros that tapes are filled with.
        if (*stream.next_in == 0) {
          ++stream.next_in;
          --stream.avail_in;
          continue;
        }
        if (inflateReset(&stream) != Z_OK) output.fail("a damaged gzip file");
        within = true;
      }
      stream.next_out = reinterpret_cast<Bytef*>(output.part().data());
      stream.avail_out = static_cast<uInt>(output.part().size());
      const int result = inflate(&stream, Z_NO_FLUSH);
      if (result == Z_MEM_ERROR) throw std::bad_alloc();
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
        output.fail("a damaged gzip file" +
                    (stream.msg != nullptr ? std::string(": ") + stream.msg : ""));
      }
      output.give(output.part().size() - stream.avail_out);
      full = stream.avail_out == 0 && result == Z_OK;
      within = result != Z_STREAM_END;
    }
  }
  if (within) output.fail("a gzip file that is cut short");
}

void unpack_zstd(InputFile& file, std::vector<std::byte>& input, std::size_t size, Output& output) {
  const std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> context(ZSTD_createDCtx(),
                                                                     &ZSTD_freeDCtx);
  if (!context) throw std::bad_alloc();
  ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
  std::size_t more = 1;  // 0: a frame has ended
  for (; size > 0; size = file.read(input)) {
    ZSTD_inBuffer in{input.data(), size, 0};
    bool full = false;
    while (in.pos < in.size || full) {
      ZSTD_outBuffer out{output.part().data(), output.part().size(), 0};
      more = ZSTD_decompressStream(context.get(), &out, &in);
      if (ZSTD_isError(more) != 0)
        output.fail(std::string("a damaged zstd file: ") + ZSTD_getErrorName(more));
      output.give(out.pos);
      full = out.pos == out.size && more != 0;
    }
  }
  if (more != 0) output.fail("a zstd file that is cut short");
}

// A file without a name in the folder for temporary files.
Descriptor open_temporary(const fs::path& folder) {
  std::string name = (folder / "roundhouse-text-XXXXXX").string();
  const int descriptor = ::mkostemp(name.data(), O_CLOEXEC);
  if (descriptor < 0) {
    throw Error("cannot write " + name + ": " + std::strerror(errno) +
                " (a packed text is unpacked there: TMPDIR names another folder)");
  }
  ::unlink(name.c_str());
  return Descriptor(descriptor);
}

void write_all(int descriptor, std::span<const std::byte> bytes, const fs::path& folder) {
  while (!bytes.empty()) {
    const ssize_t part = ::write(descriptor, bytes.data(), bytes.size());
    if (part < 0 && errno == EINTR) continue;
    if (part < 0) {
      throw Error("cannot unpack a text into " + folder.string() + ": " + std::strerror(errno) +
                  " (TMPDIR names another folder)");
    }
    bytes = bytes.subspan(static_cast<std::size_t>(part));
  }
}

MappedFile map_content(const fs::path& path, const std::function<void()>& tick, Packing& packing) {
  MappedFile file(path);
  const auto head = file.bytes().first(std::min<std::size_t>(file.bytes().size(), 4));
  packing = packing_of({reinterpret_cast<const char*>(head.data()), head.size()});
  if (packing == Packing::kNone) return file;
  const fs::path folder = fs::temp_directory_path();
  const Descriptor unpacked = open_temporary(folder);
  read_content(path, [&](std::span<const std::byte> part) {
    write_all(unpacked.get(), part, folder);
    tick();
  });
  return MappedFile(fs::path("/proc/self/fd") / std::to_string(unpacked.get()));
}

}  // namespace

Packing packing_of(std::string_view content) {
  if (content.starts_with("\x1f\x8b"sv)) return Packing::kGzip;
  // A frame that a reader skips may come first.
  if (content.starts_with("\x28\xb5\x2f\xfd"sv)) return Packing::kZstd;
  const bool skippable = content.size() >= 4 && (content[0] & 0xf0) == 0x50 &&
                         content.substr(1).starts_with("\x2a\x4d\x18"sv);
  return skippable ? Packing::kZstd : Packing::kNone;
}

const char* name_of(Packing packing) {
  return packing == Packing::kGzip ? "gzip" : packing == Packing::kZstd ? "zstd" : "";
}

Packing read_content(const fs::path& path, const Take& take) {
  InputFile file(path);
  std::vector<std::byte> input(kPartBytes);
  std::size_t size = file.read(input);
  const Packing packing = packing_of({reinterpret_cast<const char*>(input.data()), size});
  Output output(path, file.size(), take);
  switch (packing) {
    case Packing::kGzip:
      unpack_gzip(file, input, size, output);
      break;
    case Packing::kZstd:
      unpack_zstd(file, input, size, output);
      break;
    case Packing::kNone:
      for (; size > 0; size = file.read(input)) take(std::span(input).first(size));
      break;
  }
  return packing;
}

std::string xxh3_hex_of_content(const fs::path& path) {
  Xxh3 hash;
  read_content(path, [&](std::span<const std::byte> part) { hash.update(part); });
  return hash.hex();
}

MappedContent::MappedContent(const fs::path& path, const std::function<void()>& tick)
    : file_(map_content(path, tick, packing_)) {}

}  // namespace roundhouse
