// Pairs of characters that stand side by side.
#pragma once

#include <bitset>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_set>

#include "model/tokenizer/utf8.h"

namespace roundhouse {

class CharacterPairs {
 public:
  void add(char32_t left, char32_t right) {
    if (is_ascii(left, right)) {
      ascii_.set(ascii_index(left, right));
    } else {
      others_.insert(pair_of(left, right));
    }
  }
  // All of a text. Precondition: it is UTF-8.
  void add_all(std::string_view text) {
    char32_t left = 0;
    for (std::size_t i = 0; i < text.size();) {
      const CodePoint c = code_point_at(text, i);
      if (i > 0) add(left, c.value);
      left = c.value;
      i += c.bytes;
    }
  }
  bool contains(char32_t left, char32_t right) const {
    return is_ascii(left, right) ? ascii_.test(ascii_index(left, right))
                                 : others_.contains(pair_of(left, right));
  }

 private:
  static bool is_ascii(char32_t left, char32_t right) { return left < 128 && right < 128; }
  static std::size_t ascii_index(char32_t left, char32_t right) { return left * 128 + right; }
  static std::uint64_t pair_of(char32_t left, char32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | right;
  }
  std::bitset<std::size_t{128} * 128> ascii_;
  std::unordered_set<std::uint64_t> others_;
};

}  // namespace roundhouse
