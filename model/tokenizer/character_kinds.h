// Kinds of characters that patterns of tokenizers tell apart, looked up in a table: by Unicode's general categories and White_Space.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace roundhouse {

// Each character is of one kind; sums of them are sets.
using CharacterKind = std::uint8_t;
constexpr CharacterKind kOtherCharacter = 1, kMark = 2, kNumber = 4;
constexpr CharacterKind kUpperLetter = 8;      // Lu, Lt
constexpr CharacterKind kLowerLetter = 16;     // Ll
constexpr CharacterKind kCaselessLetter = 32;  // Lm, Lo
constexpr CharacterKind kNewline = 64;         // \n, \r
constexpr CharacterKind kOtherWhiteSpace = 128;
constexpr CharacterKind kLetter = kUpperLetter | kLowerLetter | kCaselessLetter;
constexpr CharacterKind kWhiteSpace = kNewline | kOtherWhiteSpace;

class CharacterKinds {
 public:
  // Made at the first call.
  static const CharacterKinds& table();
  // Precondition: a code point.
  CharacterKind operator[](char32_t c) const { return pages_[page_of_[c / kPage]][c % kPage]; }

 private:
  static constexpr char32_t kPage = 256;
  using Page = std::array<CharacterKind, kPage>;
  CharacterKinds();
  std::array<std::uint16_t, 0x110000 / kPage> page_of_{};
  std::vector<Page> pages_;  // those that differ
};

}  // namespace roundhouse
