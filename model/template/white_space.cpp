#include "model/template/white_space.h"

#include <algorithm>

#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

// Python's isspace() has the four separators of ASCII, too.
bool is_space(char32_t c) { return is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xc0) == 0x80; }

}  // namespace

std::string_view strip_end(std::string_view text) {
  while (!text.empty()) {
    std::size_t last = text.size() - 1;
    while (last > 0 && is_continuation(text[last])) --last;
    if (!is_space(code_point_at(text, last).value)) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string_view strip_begin(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = code_point_at(text, 0);
    if (!is_space(c.value)) break;
    text.remove_prefix(c.bytes);
  }
  return text;
}

std::string_view strip(std::string_view text) { return strip_begin(strip_end(text)); }

std::size_t count_white_space(std::string_view text) {
  std::size_t count = 0;
  bool within = false;
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint c = code_point_at(text, i);
    const bool space = is_space(c.value);
    if (space && !within) ++count;
    within = space;
    i += c.bytes;
  }
  return count;
}

std::size_t count_characters(std::string_view text) {
  return text.size() - static_cast<std::size_t>(std::ranges::count_if(text, is_continuation));
}

}  // namespace roundhouse
