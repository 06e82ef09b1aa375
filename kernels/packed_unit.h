// The 32 codes of a unit of packed codes, for host and device code alike: see kernels/quantized_product.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/host_device.h"

namespace roundhouse {

template <int kBits>
ROUNDHOUSE_HD inline unsigned code_in_unit(const std::uint32_t* words, int i) {
  constexpr unsigned kMask = (1u << kBits) - 1;
  const int bit = i * kBits, word = bit / 32, shift = bit % 32;
  unsigned code = words[word] >> shift;
  if (shift + kBits > 32) code |= words[word + 1] << (32 - shift);
  return code & kMask;
}

template <int kBits>
ROUNDHOUSE_HD inline void put_in_unit(std::uint32_t* words, int i, unsigned code) {
  const int bit = i * kBits, word = bit / 32, shift = bit % 32;
  words[word] |= code << shift;
  if (shift + kBits > 32) words[word + 1] |= code >> (32 - shift);
}

// Calls work(std::integral_constant<int, bits>()); bits is 2, 3 or 4.
template <class Work>
void with_packed_bits(int bits, const Work& work) {
  if (bits == 2) return work(std::integral_constant<int, 2>());
  if (bits == 3) return work(std::integral_constant<int, 3>());
  return work(std::integral_constant<int, 4>());
}

}  // namespace roundhouse
