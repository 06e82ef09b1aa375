#include "stages/export/transposed.h"

#include <algorithm>

#include "model/quantized/bitstream.h"

namespace roundhouse {

// A stream of the file is a row of codes: packed where it lies, then its words are spread over a column. Sixteen rows at a time, so
// that a whole cache line of the file is written at once.
void pack_transposed(const QuantizedLinear& linear, HostTensor& packed) {
  constexpr std::size_t kTogether = 16;
  const auto rows = static_cast<std::size_t>(linear.rows);
  const auto cols = static_cast<std::size_t>(linear.cols);
  const std::size_t words = packed_words(cols, linear.bits);
  const std::span<const std::uint8_t> codes = linear.codes.as<std::uint8_t>();
  const std::span<std::uint32_t> out = packed.as<std::uint32_t>();
  std::vector<std::uint32_t> streams(kTogether * words);
  for (std::size_t first = 0; first < rows; first += kTogether) {
    const std::size_t n = std::min(kTogether, rows - first);
    for (std::size_t i = 0; i < n; ++i) {
      pack_bits(codes.data() + (first + i) * cols, cols, 1, linear.bits,
                streams.data() + i * words);
    }
    for (std::size_t word = 0; word < words; ++word) {
      for (std::size_t i = 0; i < n; ++i) out[word * rows + first + i] = streams[i * words + word];
    }
  }
}

void transpose_scales(const QuantizedLinear& linear, HostTensor& transposed) {
  const auto rows = static_cast<std::size_t>(linear.rows);
  const auto groups = static_cast<std::size_t>(linear.groups());
  const std::span<const std::uint16_t> from = linear.scales.as<std::uint16_t>();
  const std::span<std::uint16_t> to = transposed.as<std::uint16_t>();
  for (std::size_t group = 0; group < groups; ++group) {
    for (std::size_t row = 0; row < rows; ++row)
      to[group * rows + row] = from[row * groups + group];
  }
}

}  // namespace roundhouse
