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
CodePoint code_point_at(std::string_view text, std::size_t i);

bool is_white_space(char32_t c);  // Unicode's White_Space, which is no category
// Of letters, digits, marks and connectors: what words are made of (Unicode Technical Standard #18, "\w").
bool is_word_character(char32_t c);

// The first character as a title has it, all others lower-case (Unicode's simple mappings). Precondition: text is UTF-8.
std::string capitalized(std::string_view text);

void append_utf8(std::string& text, char32_t value);

}  // namespace roundhouse
