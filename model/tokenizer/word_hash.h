// A hash of short texts, for tables in memory: the same only within a process.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace roundhouse {

// 2^64 divided by the golden ratio: products with it are spread in their upper bits.
constexpr std::uint64_t kGoldenRatio = 0x9e3779b97f4a7c15U;

// Eight bytes at a time, the last of which may be taken twice; the upper bits are the better ones.
inline std::uint64_t hash_of_word(std::string_view word) {
  const auto load = [](const char* from, auto value) -> std::uint64_t {
    std::memcpy(&value, from, sizeof value);
    return value;
  };
  const auto byte = [&](std::size_t i) -> std::uint64_t {
    return static_cast<unsigned char>(word[i]);
  };
  const std::size_t n = word.size();
  std::uint64_t hash = n * kGoldenRatio;
  const auto add = [&](std::uint64_t bytes) {
    hash = (hash ^ bytes) * kGoldenRatio;
    hash ^= hash >> 32;
  };
  if (n >= 8) {
    for (std::size_t i = 0; i + 8 < n; i += 8) add(load(&word[i], std::uint64_t{}));
    add(load(&word[n - 8], std::uint64_t{}));
  } else if (n >= 4) {
    add(load(&word[0], std::uint32_t{}) | load(&word[n - 4], std::uint32_t{}) << 32);
  } else if (n > 0) {
    add(byte(0) | byte(n / 2) << 8 | byte(n - 1) << 16);
  }
  return hash * kGoldenRatio;
}

// A set of hashes that may hold more than was put in: it fits the processor's cache where the table it stands before does not,
// and most of what is looked up there is not in the table.
class HashFilter {
 public:
  // For this many hashes, of which it then has none.
  void reset(std::size_t hashes) {
    const std::size_t bits = std::bit_ceil(kBitsOfEach * std::max<std::size_t>(hashes, 8));
    shift_ = 64 - std::countr_zero(bits);
    bits_.assign(bits / 64, 0);
  }
  void add(std::uint64_t hash) { bits_[hash >> shift_ >> 6] |= bit(hash); }
  // Precondition: reset() was called.
  bool may_contain(std::uint64_t hash) const {
    return (bits_[hash >> shift_ >> 6] & bit(hash)) != 0;
  }

 private:
  static constexpr std::size_t kBitsOfEach = 8;  // at least
  std::uint64_t bit(std::uint64_t hash) const { return std::uint64_t{1} << (hash >> shift_ & 63); }
  std::vector<std::uint64_t> bits_;
  int shift_ = 0;
};

}  // namespace roundhouse
