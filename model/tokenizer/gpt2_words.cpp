#include "model/tokenizer/gpt2_words.h"

#include <utf8proc.h>

#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

enum class Kind { kSpace, kLetter, kNumber, kOther };

Kind kind_by_category(char32_t c) {
  if (is_white_space(c)) return Kind::kSpace;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return Kind::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Kind::kNumber;
    default:
      return Kind::kOther;
  }
}

// Most characters of most texts are ASCII.
const std::array<Kind, 128> kAscii = [] {
  std::array<Kind, 128> kinds{};
  for (char32_t c = 0; c < 128; ++c) kinds[c] = kind_by_category(c);
  return kinds;
}();

Kind kind_of(char32_t c) { return c < 128 ? kAscii[c] : kind_by_category(c); }

// The length of 's, 't, 're, ... at the beginning of the text, or 0.
std::size_t contraction(std::string_view text) {
  if (text.front() != '\'') return 0;
  for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(ending)) return ending.size();
  }
  return 0;
}

std::size_t word_end(std::string_view text, std::size_t begin) {
  if (const std::size_t length = contraction(text.substr(begin))) return begin + length;

  // One space may lead a word of another kind.
  std::size_t end = text[begin] == ' ' && begin + 1 < text.size() ? begin + 1 : begin;
  CodePoint c = code_point_at(text, end);
  Kind kind = kind_of(c.value);
  if (kind == Kind::kSpace) {
    end = begin;
    c = code_point_at(text, end);
    kind = kind_of(c.value);
  }
  std::size_t last = end;  // where the last character begins
  while (end < text.size()) {
    c = code_point_at(text, end);
    if (kind_of(c.value) != kind) break;
    last = end;
    end += c.bytes;
  }
  const bool leaves_one = kind == Kind::kSpace && end < text.size() && last > begin;
  return leaves_one ? last : end;
}

}  // namespace

bool gpt2_word_ends(char32_t left, char32_t right) {
  const Kind before = kind_of(left), after = kind_of(right);
  // A space may belong to the word behind it, a letter to the apostrophe before it; more of anything is more of the word.
  return before != after && before != Kind::kSpace &&
         !(before == Kind::kOther && after == Kind::kLetter);
}

std::vector<std::string_view> gpt2_words(std::string_view text) {
  std::vector<std::string_view> words;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = word_end(text, begin);
    words.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return words;
}

const std::array<std::string, 256>& characters_of_bytes() {
  static const std::array<std::string, 256> characters = [] {
    std::array<std::string, 256> result;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
                           (byte >= 0xae && byte <= 0xff);
      append_utf8(result[byte], visible ? byte : next++);
    }
    return result;
  }();
  return characters;
}

}  // namespace roundhouse
