// Text as code points.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "base/quote.h"

namespace roundhouse {

bool is_utf8(std::string_view text);

// The code point that begins at byte i < text.size(), and its length in bytes. Precondition: text is UTF-8.
struct CodePoint {
  char32_t value;
  std::size_t bytes;
};
inline CodePoint code_point_at(std::string_view text, std::size_t i) {
  const auto byte = [&](std::size_t j) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[i + j]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) {
    return {(lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  }
  return {(lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f),
          4};
}

bool is_white_space(char32_t c);  // Unicode's White_Space, which is no category
// Of letters, digits, marks and connectors: what words are made of (Unicode Technical Standard #18, "\w").
bool is_word_character(char32_t c);

// The first character as a title has it, all others lower-case (Unicode's simple mappings). Precondition: text is UTF-8.
std::string capitalized(std::string_view text);

void append_utf8(std::string& text, char32_t value);

}  // namespace roundhouse
