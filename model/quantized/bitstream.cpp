#include "model/quantized/bitstream.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace roundhouse {
namespace {

static_assert(std::endian::native == std::endian::little);  // a stream of bits is one of bytes

// Eight codes, a byte each, become 8 b bits, which are b whole bytes of the stream: neighbours are joined by twos, fours and eights.
class EightCodes {
 public:
  explicit EightCodes(int bits)
      : bits_(bits),
        every_(repeated(1, 8)),
        ones_(repeated(1, 16)),
        twos_(repeated(2, 32)),
        fours_(repeated(4, 64)) {}

  std::uint64_t pack(std::uint64_t codes) const {
    codes = (codes & ones_) | (codes >> (8 - bits_) & ones_ << bits_);
    codes = (codes & twos_) | (codes >> (16 - 2 * bits_) & twos_ << 2 * bits_);
    return (codes & fours_) | (codes >> (32 - 4 * bits_) & fours_ << 4 * bits_);
  }
  std::uint64_t unpack(std::uint64_t stream) const {
    stream = (stream & fours_) | (stream & fours_ << 4 * bits_) << (32 - 4 * bits_);
    stream = (stream & twos_) | (stream & twos_ << 2 * bits_) << (16 - 2 * bits_);
    return (stream & ones_) | (stream & ones_ << bits_) << (8 - bits_);
  }
  bool fit(std::uint64_t codes) const { return (codes & ~every_) == 0; }

 private:
  // The lowest `codes` b bits of every `width` of 64.
  std::uint64_t repeated(int codes, int width) const {
    const int used = codes * bits_;
    const std::uint64_t lowest = ~std::uint64_t{0} >> (64 - used);
    std::uint64_t mask = 0;
    for (int at = 0; at < 64; at += width) mask |= lowest << at;
    return mask;
  }

  int bits_;
  std::uint64_t every_, ones_, twos_, fours_;  // the lower of each two that are joined
};

std::uint64_t load_bytes(const std::byte* from, std::size_t bytes) {
  std::uint64_t value = 0;
  std::memcpy(&value, from, bytes);
  return value;
}

}  // namespace

std::size_t packed_words(std::size_t values, int bits) {
  return (values * static_cast<std::size_t>(bits) + 31) / 32;
}

bool try_pack_bits(const std::uint8_t* values, std::size_t count, int bits, std::uint32_t* words) {
  const EightCodes eight(bits);
  const auto step = static_cast<std::size_t>(bits);
  auto* out = reinterpret_cast<std::byte*>(words);
  std::byte* const end = out + 4 * packed_words(count, bits);
  const auto* in = reinterpret_cast<const std::byte*>(values);
  std::uint64_t seen = 0;
  // Whole words of 64 bits are stored, of which the next ones overwrite what is too much.
  for (; count >= 8 && end - out >= 8; count -= 8, in += 8, out += step) {
    const std::uint64_t codes = load_bytes(in, 8);
    seen |= codes;
    const std::uint64_t packed = eight.pack(codes);
    std::memcpy(out, &packed, 8);
  }
  while (out < end) {
    const std::size_t part = std::min<std::size_t>(count, 8);
    const std::uint64_t codes = load_bytes(in, part);
    seen |= codes;
    const std::uint64_t packed = eight.pack(codes);
    const std::size_t bytes = std::min(part < 8 ? 8 : step, static_cast<std::size_t>(end - out));
    std::memcpy(out, &packed, bytes);
    out += bytes;
    in += part;
    count -= part;
  }
  return eight.fit(seen);
}

void pack_bits(const std::uint8_t* values, std::size_t count, std::size_t stride, int bits,
               std::uint32_t* words) {
  if (stride == 1) {
    (void)try_pack_bits(values, count, bits, words);
    return;
  }
  std::uint64_t pending = 0;  // bits not yet written, the oldest lowest; at most 31 + 8 of them
  int filled = 0;
  for (std::size_t i = 0; i < count; ++i) {
    pending |= std::uint64_t{values[i * stride]} << filled;
    filled += bits;
    if (filled >= 32) {
      *words++ = static_cast<std::uint32_t>(pending);
      pending >>= 32;
      filled -= 32;
    }
  }
  if (filled > 0) *words = static_cast<std::uint32_t>(pending);
}

void pack_rows(const HostTensor& codes, int bits, HostTensor& words) {
  const auto rows = static_cast<std::size_t>(codes.shape()[0]);
  const auto n = static_cast<std::size_t>(codes.shape()[1]), stream = packed_words(n, bits);
  const std::span<const std::uint8_t> values = codes.as<std::uint8_t>();
  const std::span<std::uint32_t> out = words.as<std::uint32_t>();
  for (std::size_t row = 0; row < rows; ++row) {
    pack_bits(values.data() + row * n, n, 1, bits, out.data() + row * stream);
  }
}

void unpack_bits(const std::uint32_t* words, std::size_t count, int bits, std::uint8_t* values) {
  const EightCodes eight(bits);
  const auto step = static_cast<std::size_t>(bits);
  const auto* in = reinterpret_cast<const std::byte*>(words);
  const std::byte* const end = in + 4 * packed_words(count, bits);
  for (; count > 0; in += step) {
    const auto left = static_cast<std::size_t>(end - in);
    const std::uint64_t stream = left >= 8 ? load_bytes(in, 8) : load_bytes(in, left);
    const std::uint64_t codes = eight.unpack(stream);
    const std::size_t part = std::min<std::size_t>(count, 8);
    std::memcpy(values, &codes, part == 8 ? 8 : part);
    values += part;
    count -= part;
  }
}

}  // namespace roundhouse
