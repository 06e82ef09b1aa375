// The dense, least-significant-bit-first stream of b-bit codes in 32-bit words that GPTQ and compressed-tensors (>= 0.18) share:
// value i occupies bits [i b, i b + b); a value may straddle two words (where b does not divide 32).
//   b = 4, values 0..7        -> 0x76543210
//   b = 3, values i % 8 (32)  -> 0x88fac688 0xc688fac6 0xfac688fa
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/tensor.h"

namespace roundhouse {

std::size_t packed_words(std::size_t values, int bits);  // ceil(values * bits / 32)
// Packs values[0], values[stride], ... (count of them). Precondition: each is below 2^bits.
void pack_bits(const std::uint8_t* values, std::size_t count, std::size_t stride, int bits,
               std::uint32_t* words);
// The same of values that follow each other, without that precondition: whether each is below 2^bits. If not, the words are worth nothing.
[[nodiscard]] bool try_pack_bits(const std::uint8_t* values, std::size_t count, int bits,
                                 std::uint32_t* words);
// U8 codes [rows, n] into the words of a 32-bit tensor [rows, packed_words(n)], each row its own stream.
void pack_rows(const HostTensor& codes, int bits, HostTensor& words);
void unpack_bits(const std::uint32_t* words, std::size_t count, int bits, std::uint8_t* values);

}  // namespace roundhouse
