#include "model/tokenizer/word_pattern.h"

#include <algorithm>
#include <array>

#include "model/tokenizer/character_kinds.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

// What a comment calls an alternative is written as in the patterns below.
constexpr std::array<WordPattern, 4> kPatterns{{
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
     WordPattern::Form::kGpt2, 0},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordPattern::Form::kLlama3, 3},
    // Qwen 2, 2.5, 3
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
     R"(|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordPattern::Form::kLlama3, 1},
    // Mistral Nemo and what came after it
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
     R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
     R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     WordPattern::Form::kNemo, 1},
}};

constexpr CharacterKind kSymbol = kOtherCharacter | kMark;               // [^\s\p{L}\p{N}]
constexpr CharacterKind kHead = kUpperLetter | kCaselessLetter | kMark;  // Nemo's [\p{Lu}..]
constexpr CharacterKind kTail = kLowerLetter | kCaselessLetter | kMark;  // and [\p{Ll}..]

// Where words end, in one text. Characters are asked for at a byte where one begins, or at the end, which is of no kind.
class Scanner {
 public:
  Scanner(const WordPattern& pattern, std::string_view text)
      : text_(text), digits_(pattern.digits) {}

  std::size_t end_of_gpt2(std::size_t begin) const {
    if (text_[begin] == '\'') {
      for (const std::string_view ending : {"s", "t", "re", "ve", "m", "ll", "d"}) {
        if (text_.substr(begin + 1).starts_with(ending)) return begin + 1 + ending.size();
      }
    }
    // One space may lead a word of another kind.
    std::size_t first = begin;
    Character c = at(begin);
    if (text_[begin] == ' ') {
      const Character next = at(begin + 1);
      if ((next.kind & ~kWhiteSpace) != 0) {
        first = begin + 1;
        c = next;
      }
    }
    if (c.kind & kWhiteSpace) return end_of_white_space(begin, false);
    const CharacterKind alike = c.kind & kLetter ? kLetter : c.kind & kNumber ? kNumber : kSymbol;
    return end_of_run(first + c.bytes, alike);
  }

  std::size_t end_of_llama3(std::size_t begin) const {
    const Character c = at(begin);
    const std::size_t next = begin + c.bytes;
    if (c.kind & kLetter) return end_of_run(next, kLetter);
    if (c.kind & kNumber) return end_of_number(next);
    if (c.kind & kNewline) return end_of_white_space(begin, true);
    if (text_[begin] == '\'') {
      if (const std::size_t length = contraction(next)) return next + length;
    }
    const Character second = at(next);
    if (second.kind & kLetter) return end_of_run(next + second.bytes, kLetter);
    const bool led = text_[begin] == ' ' && (second.kind & kSymbol);
    if ((c.kind & kWhiteSpace) && !led) return end_of_white_space(begin, true);
    return end_of_run(end_of_run(next, kSymbol), kNewline);
  }

  std::size_t end_of_nemo(std::size_t begin) const {
    const Character c = at(begin);
    const std::size_t next = begin + c.bytes;
    if (c.kind & kLetter) {
      const Letters own = letters(begin);
      return own.first_form != 0 ? own.first_form : own.head;
    }
    if (c.kind & kNumber) return end_of_number(next);
    if (c.kind & kNewline) return end_of_white_space(begin, true);
    const Character second = at(next);
    if (second.kind & (kLetter | kMark)) {
      const Letters led = letters(next);
      if (led.first_form != 0) return led.first_form;
      // The first alternative without the character that leads comes before the second with it.
      return c.kind & kMark ? letters(begin).first_form : led.head;
    }
    if (c.kind & kMark) return next;
    const bool led = text_[begin] == ' ' && (second.kind & kSymbol);
    if ((c.kind & kWhiteSpace) && !led) return end_of_white_space(begin, true);
    std::size_t end = end_of_run(next, kSymbol);
    while (end < text_.size() && (text_[end] == '\n' || text_[end] == '\r' || text_[end] == '/'))
      ++end;
    return end;
  }

 private:
  struct Character {
    CharacterKind kind;
    std::size_t bytes;
  };
  Character at(std::size_t i) const {
    if (i >= text_.size()) return {0, 0};
    const CodePoint c = code_point_at(text_, i);
    return {kinds_[c.value], c.bytes};
  }

  std::size_t end_of_run(std::size_t i, CharacterKind kinds) const {
    for (Character c = at(i); c.kind & kinds; c = at(i)) i += c.bytes;
    return i;
  }

  // \p{N}{..} behind its first.
  std::size_t end_of_number(std::size_t i) const {
    for (int k = 1; k < digits_; ++k) {
      const Character c = at(i);
      if (!(c.kind & kNumber)) break;
      i += c.bytes;
    }
    return i;
  }

  // \s*[\r\n]+ where wanted, else \s+(?!\S)|\s+
  std::size_t end_of_white_space(std::size_t begin, bool newlines) const {
    std::size_t end = begin, last = begin, behind_newline = begin;
    for (Character c = at(end); c.kind & kWhiteSpace; c = at(end)) {
      last = end;
      end += c.bytes;
      if (c.kind & kNewline) behind_newline = end;
    }
    if (newlines && behind_newline > begin) return behind_newline;
    return end < text_.size() && last > begin ? last : end;
  }

  // The length of what (?i:s|t|re|ve|m|ll|d) takes, or 0.
  std::size_t contraction(std::size_t i) const {
    const auto letter = [&](std::size_t k) {
      const char c = k < text_.size() ? text_[k] : '\0';
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    switch (letter(i)) {
      case 's':
      case 't':
      case 'm':
      case 'd':
        return 1;
      case 'r':
      case 'v':
        return letter(i + 1) == 'e' ? 2 : 0;
      case 'l':
        return letter(i + 1) == 'l' ? 2 : 0;
      default:
        // The long s, U+017F, is an s in another case.
        return text_.substr(i).starts_with("\u017f") ? 2 : 0;
    }
  }

  // From a letter or mark on: where [\p{Lu}..]* ends at the longest, and where [\p{Lu}..]*[\p{Ll}..]+ does; 0: it does not match.
  struct Letters {
    std::size_t head;
    std::size_t first_form;
  };
  Letters letters(std::size_t i) const {
    std::size_t behind_tail = 0;  // of those that are in both
    Character c = at(i);
    for (; c.kind & kHead; c = at(i)) {
      i += c.bytes;
      if (c.kind & kTail) behind_tail = i;
    }
    return {i, c.kind & kTail ? end_of_run(i, kTail) : behind_tail};
  }

  const CharacterKinds& kinds_ = CharacterKinds::table();
  std::string_view text_;
  int digits_;
};

}  // namespace

const WordPattern* WordPattern::find(std::string_view text) {
  const auto found = std::ranges::find(kPatterns, text, &WordPattern::pattern);
  return found == kPatterns.end() ? nullptr : &*found;
}

const WordPattern& WordPattern::gpt2() { return kPatterns[0]; }

void WordPattern::append_words(std::string_view text, std::size_t at,
                               std::vector<Words::Range>& words) const {
  const Scanner scanner(*this, text);
  const auto append = [&](auto end_of) {
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = end_of(begin);
      words.push_back({at + begin, at + end});
      begin = end;
    }
  };
  switch (form) {
    case Form::kGpt2:
      return append([&](std::size_t begin) { return scanner.end_of_gpt2(begin); });
    case Form::kLlama3:
      return append([&](std::size_t begin) { return scanner.end_of_llama3(begin); });
    case Form::kNemo:
      return append([&](std::size_t begin) { return scanner.end_of_nemo(begin); });
  }
}

Cut WordPattern::cut(char32_t left, char32_t right) const {
  const CharacterKinds& kinds = CharacterKinds::table();
  const CharacterKind l = kinds[left], r = kinds[right];
  const CharacterKind letter = form == Form::kNemo ? kLetter | kMark : kLetter;
  // White space may lead the word behind it, or leave its last to it; what is no letter may lead letters or be a contraction.
  const bool one = (l & kWhiteSpace) || ((l & letter) && (r & letter)) ||
                   ((l & kSymbol) && (r & (letter | kSymbol | kNewline))) ||
                   ((l & kNumber) && (r & kNumber) && digits != 1);
  return one ? Cut::kNo : Cut::kBetween;
}

}  // namespace roundhouse
