#include "model/quantized/bitstream.h"

namespace roundhouse {

std::size_t packed_words(std::size_t values, int bits) {
  return (values * static_cast<std::size_t>(bits) + 31) / 32;
}

void pack_bits(const std::uint8_t* values, std::size_t count, std::size_t stride, int bits,
               std::uint32_t* words) {
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
  const std::uint64_t mask = (std::uint64_t{1} << bits) - 1;
  std::uint64_t pending = 0;
  int left = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (left < bits) {
      pending |= std::uint64_t{*words++} << left;
      left += 32;
    }
    values[i] = static_cast<std::uint8_t>(pending & mask);
    pending >>= bits;
    left -= bits;
  }
}

}  // namespace roundhouse
