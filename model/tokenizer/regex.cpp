#include "model/tokenizer/regex.h"

#include <fmt/format.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxPatternBytes = std::size_t{1} << 14;  // that of Llama 3 has 140
constexpr std::uint32_t kMaxHeapKiB = std::uint32_t{1} << 16;

// Steps that a search may take from one place: more than the patterns of real tokenizers need, which take one or two for each
// character of a run of white space.
std::uint32_t step_limit(std::size_t bytes) {
  return static_cast<std::uint32_t>(2'000'000 + 4 * std::min(bytes, std::size_t{1} << 28));
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Walks over a pattern and writes it anew.
class Translator {
 public:
  Translator(const std::string& pattern, const std::string& where)
      : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        inside_class(c);
      } else {
        outside(c);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw InputError(where_ + "regular expression " + in_quotes(pattern_) + ": " + what +
                     " is not supported");
  }
  bool follows(std::string_view text) const {
    return pattern_.compare(at_, text.size(), text) == 0;
  }
  void copy(std::size_t bytes) {
    out_ += pattern_.substr(at_, bytes);
    at_ += bytes;
  }

  void escape() {
    if (at_ + 1 == pattern_.size()) refuse("a \\ at the end");
    const char c = pattern_[at_ + 1];
    const auto put = [&](std::string_view text) {
      out_ += text;
      at_ += 2;
    };
    // Sets of characters, bare within a class.
    const auto put_set = [&](std::string_view set, bool negated) {
      if (in_class_ && negated) refuse(std::string("\\") + c + " in a class");
      put(in_class_ ? std::string(set) : (negated ? "[^" : "[") + std::string(set) + "]");
    };
    switch (c) {
      case 's':
        return put("\\p{White_Space}");
      case 'S':
        return put("\\P{White_Space}");
      case 'd':
        return put("\\p{Nd}");
      case 'D':
        return put("\\P{Nd}");
      case 'w':
      case 'W':
        return put_set("\\p{L}\\p{M}\\p{Nd}\\p{Pc}", c == 'W');
      case 'h':
      case 'H':
        return put_set("0-9a-fA-F", c == 'H');
      case 'v':
        return put("\\x0B");
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        return copy(2);
      case 'p':
      case 'P': {
        const std::size_t end = pattern_.find('}', at_);
        if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || end == pattern_.npos)
          refuse("\\p without {}");
        return copy(end + 1 - at_);
      }
      case 'x': {
        const std::size_t end = follows("\\x{") ? pattern_.find('}', at_) : at_ + 1;
        if (end == pattern_.npos) refuse("\\x{ without }");
        return copy(end + 1 - at_);
      }
      case 'u': {
        const std::string digits = pattern_.substr(at_ + 2, 4);
        if (digits.size() < 4) refuse("\\u without four digits");
        out_ += "\\x{" + digits + "}";
        at_ += 6;
        return;
      }
      case 'b':
      case 'B':
      case 'A':
      case 'z':
      case 'Z':
        if (in_class_) refuse(std::string("\\") + c + " in a class");
        return copy(2);
      default:
        if (is_letter(c) || (c >= '0' && c <= '9')) refuse(std::string("\\") + c);
        return copy(1 + code_point_at(pattern_, at_ + 1).bytes);
    }
  }

  void inside_class(char c) {
    if (follows("[:")) {
      const std::size_t end = pattern_.find(":]", at_);
      if (end == pattern_.npos) refuse("a class in a class");
      return copy(end + 2 - at_);
    }
    if (c == '[') refuse("a class in a class");
    if (follows("&&")) refuse("&&");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  void outside(char c) {
    if (c == '[') {
      in_class_ = true;
      copy(follows("[^]") ? 3 : follows("[^") || follows("[]") ? 2 : 1);
      return;
    }
    if (follows("(?")) {
      for (const std::string_view known :
           {"(?:", "(?i:", "(?-i:", "(?i)", "(?=", "(?!", "(?<=", "(?<!", "(?>"}) {
        if (follows(known)) return copy(known.size());
      }
      refuse("\"" + pattern_.substr(at_, 4) + "\"");
    }
    if (follows("{,")) {
      out_ += "{0,";
      at_ += 2;
      return;
    }
    if (c == '}' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == '+') refuse("{..}+");
    if (c == '(' && follows("(*")) refuse("(*");
    copy(1);
  }

  const std::string& pattern_;
  const std::string& where_;
  std::string out_;
  std::size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

struct PcreCode {
  explicit PcreCode(pcre2_code* compiled) : code(compiled) {}
  PcreCode(const PcreCode&) = delete;
  PcreCode& operator=(const PcreCode&) = delete;
  ~PcreCode() { pcre2_code_free(code); }
  pcre2_code* code;
};

std::string pcre_of(const std::string& pattern, const std::string& where) {
  return Translator(pattern, where).run();
}

Regex::Regex(const std::string& pattern, const std::string& where)
    : pattern_(pattern), where_(where) {
  const auto fail = [&](const std::string& what) {
    throw InputError(where + "regular expression " + in_quotes(pattern) + ": " + what);
  };
  if (pattern.size() > kMaxPatternBytes) fail("too long");
  if (!is_utf8(pattern)) fail("not UTF-8");
  const std::string translated = pcre_of(pattern, where);
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  if (context == nullptr) throw std::bad_alloc();
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE place = 0;
  pcre2_code* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &place, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    fail(reinterpret_cast<const char*>(message.data()));
  }
  code_ = std::make_unique<PcreCode>(code);
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is none it is interpreted
}

Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

struct Regex::Matches::Buffers {
  explicit Buffers(const PcreCode& code, std::size_t bytes)
      : data(pcre2_match_data_create_from_pattern(code.code, nullptr)),
        context(pcre2_match_context_create(nullptr)) {
    if (data == nullptr || context == nullptr) throw std::bad_alloc();
    pcre2_set_match_limit(context, step_limit(bytes));
    pcre2_set_heap_limit(context, kMaxHeapKiB);
  }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  ~Buffers() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
  }
  pcre2_match_data* data;
  pcre2_match_context* context;
};

Regex::Matches::Matches(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), buffers_(std::make_unique<Buffers>(*regex.code_, text.size())) {}
Regex::Matches::~Matches() = default;

std::optional<Regex::Match> Regex::Matches::search(std::size_t from) {
  const auto match = [&](std::uint32_t options) {
    return pcre2_match(regex_.code_->code, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(),
                       from, PCRE2_NO_UTF_CHECK | options, buffers_->data, buffers_->context);
  };
  int result = match(0);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (result < 0) {
    std::array<PCRE2_UCHAR, 256> message{};
    pcre2_get_error_message(result, message.data(), message.size());
    throw InputError(fmt::format(
        "{}regular expression {} cannot be searched for in a text of {} bytes: {}", regex_.where_,
        in_quotes(regex_.pattern_), text_.size(), reinterpret_cast<const char*>(message.data())));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(buffers_->data);
  return Match{ends[0], std::max(ends[0], ends[1])};
}

std::optional<Regex::Match> Regex::Matches::next() {
  std::size_t from = at_;
  for (;;) {
    if (from > text_.size()) return std::nullopt;
    const auto match = search(from);
    if (!match) return std::nullopt;
    if (match->begin == match->end && found_ && match->end == at_) {
      from = at_ + (at_ < text_.size() ? code_point_at(text_, at_).bytes : 1);
      continue;
    }
    at_ = match->end;
    found_ = true;
    return match;
  }
}

}  // namespace roundhouse
