#include "model/tokenizer/normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <vector>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using Edges = std::optional<std::pair<char32_t, char32_t>>;

constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxContentBytes = 256;
constexpr std::size_t kMaxSteps = 32;
constexpr std::size_t kMaxGrowth = 64;  // NFKC makes at most 11 of one

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

char32_t first_of(std::string_view text) { return code_point_at(text, 0).value; }
char32_t last_of(std::string_view text) {
  std::size_t i = text.size() - 1;
  while ((static_cast<unsigned char>(text[i]) & 0xc0) == 0x80) --i;
  return code_point_at(text, i).value;
}

// Code points with a class or a decomposition that Hugging Face's tokenizers do not know, whose tables are older than Unicode 10:
// to them each is a character like any other, and so it has to be here.
constexpr std::array<std::pair<char32_t, char32_t>, 49> kNewer{{
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0xece, 0xece},
    {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0x32ff, 0x32ff},
    {0xa7f2, 0xa7f4},   {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x10781, 0x10785},
    {0x10787, 0x107b0}, {0x107b2, 0x107ba}, {0x10d24, 0x10d27}, {0x10eab, 0x10eac},
    {0x10efd, 0x10eff}, {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070},
    {0x11241, 0x11241}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
    {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99},
    {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42},
    {0x16ff0, 0x16ff1}, {0x1e030, 0x1e06d}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
    {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef}, {0x1f16c, 0x1f16c},
    {0x1fbf0, 0x1fbf9},
}};

bool is_newer(char32_t c) {
  const auto after = std::ranges::upper_bound(kNewer, c, {}, &std::pair<char32_t, char32_t>::first);
  return after != kNewer.begin() && c <= std::prev(after)->second;
}

// A normalization form of Unicode (Unicode Standard Annex #15).
class NormalizationForm : public NormalizerStep {
 public:
  explicit NormalizationForm(int options) : options_(static_cast<utf8proc_option_t>(options)) {
    note_quick_checks();
  }

  bool leaves(std::string_view text, PieceStart) const override {
    return is_ascii(text) || next_change(text, 0).begin == text.size();
  }

  std::string apply(std::string_view text, PieceStart) const override {
    std::string out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
      const Stretch change = next_change(text, i);
      out.append(text.substr(i, change.begin - i));
      append_form(text.substr(change.begin, change.end - change.begin), out);
      i = change.end;
    }
    return out;
  }

  Edges edges(char32_t left, char32_t right) const override {
    if (left < 0x80 && right < 0x80) return std::pair(left, right);
    std::string before, after;
    append_utf8(before, left);
    append_utf8(after, right);
    if (is_newer(left) || is_newer(right) || !begins_anew(before) || !begins_anew(after))
      return std::nullopt;
    before = form_of(before);
    after = form_of(after);
    return std::pair(last_of(before), first_of(after));
  }

 private:
  // The quick check of Annex #15: a text stays as it is if none of its characters is kMayChange, and the combining classes of those
  // that follow each other do not fall but to 0. Before a character of class 0 what is left of it has no more to do with what is right.
  static constexpr char32_t kChecked = 0x30000;  // characters beyond are rare
  static constexpr std::uint8_t kMayChange = 255;
  void note_quick_checks() {
    const auto put = [&](char32_t c, std::uint8_t check) { checks_[c] = check; };
    std::string text;
    for (char32_t c = 0x80; c < kChecked; ++c) {
      const utf8proc_property_t* const property =
          utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      if (is_newer(c)) continue;
      if (c >= 0xd800 && c < 0xe000) {
        put(c, kMayChange);
        continue;
      }
      put(c, static_cast<std::uint8_t>(property->combining_class));
      const bool hangul = c >= 0x1100 && c < 0x1200;
      if (hangul) put(c, kMayChange);
      if (property->decomp_seqindex == UINT16_MAX && !(c >= 0xac00 && c < 0xd7a4)) continue;
      text.clear();
      append_utf8(text, c);
      if (form_of(text) != text) put(c, kMayChange);
    }
    // What a character ends with that is composed of several may become one with what is before it.
    for (char32_t c = 0x80; c < kChecked; ++c) {
      const utf8proc_property_t* const property =
          utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
      if (property->decomp_seqindex == UINT16_MAX || property->decomp_type != 0) continue;
      std::array<utf8proc_int32_t, 32> parts{};
      int last_class = 0;
      const auto count = utf8proc_decompose_char(
          static_cast<utf8proc_int32_t>(c), parts.data(), parts.size(),
          static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), &last_class);
      if (count < 2 || count > std::ssize(parts)) continue;
      const auto last = static_cast<char32_t>(parts[static_cast<std::size_t>(count) - 1]);
      if (last < kChecked) put(last, kMayChange);
    }
  }
  std::uint8_t check_of(char32_t c) const { return c < kChecked ? checks_[c] : kMayChange; }

  // From a character on before which a form can be cut: the next characters that are not known to stay as they are; or the end, twice.
  struct Stretch {
    std::size_t begin, end;
  };
  Stretch next_change(std::string_view text, std::size_t i) const {
    std::size_t start = i;  // of what may become one with what follows
    for (std::uint8_t before = 0; i < text.size();) {
      if (static_cast<unsigned char>(text[i]) < 0x80) {
        start = i++;
        before = 0;
        continue;
      }
      const CodePoint c = code_point_at(text, i);
      const std::uint8_t check = check_of(c.value);
      if (check == 0) {
        start = i;
      } else if (check == kMayChange || check < before) {
        return {start, end_of_change(text, i + c.bytes)};
      }
      before = check;
      i += c.bytes;
    }
    return {text.size(), text.size()};
  }
  std::size_t end_of_change(std::string_view text, std::size_t i) const {
    while (i < text.size() && static_cast<unsigned char>(text[i]) >= 0x80) {
      const CodePoint c = code_point_at(text, i);
      if (check_of(c.value) == 0) break;
      i += c.bytes;
    }
    return i;
  }

  void append_form(std::string_view text, std::string& out) const {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < text.size();) {
      const CodePoint c = code_point_at(text, i);
      if (is_newer(c.value)) {
        out += form_of(text.substr(begin, i - begin));
        out += text.substr(i, c.bytes);
        begin = i + c.bytes;
      }
      i += c.bytes;
    }
    out += form_of(text.substr(begin));
  }
  std::string form_of(std::string_view text) const {
    if (text.empty()) return {};
    utf8proc_uint8_t* result = nullptr;
    const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                     static_cast<utf8proc_ssize_t>(text.size()), &result, options_);
    if (length < 0) {
      throw InputError(std::string("a text cannot be normalized: ") + utf8proc_errmsg(length));
    }
    std::string out(reinterpret_cast<const char*>(result), static_cast<std::size_t>(length));
    std::free(result);
    return out;
  }
  // Is the character never one with those before it?
  bool begins_anew(const std::string& text) const {
    const int compat = static_cast<int>(options_) & UTF8PROC_COMPAT;
    utf8proc_uint8_t* result = nullptr;
    const auto length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     static_cast<utf8proc_ssize_t>(text.size()), &result,
                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | compat));
    if (length <= 0) {
      std::free(result);
      return false;
    }
    const char32_t c =
        first_of({reinterpret_cast<const char*>(result), static_cast<std::size_t>(length)});
    std::free(result);
    const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
    const bool mark = category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
                      category == UTF8PROC_CATEGORY_ME || category == UTF8PROC_CATEGORY_CN;
    const bool jamo = c >= 0x1160 && c <= 0x11ff;  // vowels and final consonants of Hangul
    return !mark && !jamo;
  }

  utf8proc_option_t options_;
  std::vector<std::uint8_t> checks_ = std::vector<std::uint8_t>(kChecked);
};

class Prepend : public NormalizerStep {
 public:
  explicit Prepend(std::string what) : what_(std::move(what)) {}
  bool leaves(std::string_view, PieceStart start) const override {
    return start == PieceStart::kWithin;
  }
  std::string apply(std::string_view text, PieceStart) const override {
    return what_ + std::string(text);
  }
  Edges edges(char32_t left, char32_t right) const override { return std::pair(left, right); }

 private:
  std::string what_;
};

class ReplaceString : public NormalizerStep {
 public:
  ReplaceString(std::string what, std::string with)
      : what_(std::move(what)), with_(std::move(with)) {}
  bool leaves(std::string_view text, PieceStart) const override {
    return text.find(what_) == text.npos;
  }
  std::string apply(std::string_view text, PieceStart) const override {
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    for (std::size_t i = 0;;) {
      const std::size_t found = text.find(what_, i);
      out.append(text.substr(i, found - i));
      if (found == text.npos) return out;
      out += with_;
      i = found + what_.size();
    }
  }
  Edges edges(char32_t left, char32_t right) const override {
    std::string before, after;
    append_utf8(before, left);
    append_utf8(after, right);
    const bool touched = what_.find(before) != what_.npos || what_.find(after) != what_.npos;
    if (!touched) return std::pair(left, right);
    const bool whole = code_point_at(what_, 0).bytes == what_.size();
    if (!whole || with_.empty()) return std::nullopt;
    return std::pair(before == what_ ? last_of(with_) : left,
                     after == what_ ? first_of(with_) : right);
  }

 private:
  std::string what_, with_;
};

class ReplaceRegex : public NormalizerStep {
 public:
  ReplaceRegex(Regex what, std::string with) : what_(std::move(what)), with_(std::move(with)) {}
  bool leaves(std::string_view, PieceStart) const override { return false; }
  std::string apply(std::string_view text, PieceStart) const override {
    std::string out;
    std::size_t i = 0;
    Regex::Matches matches(what_, text);
    while (const auto match = matches.next()) {
      out.append(text.substr(i, match->begin - i));
      out += with_;
      i = match->end;
    }
    return out.append(text.substr(i));
  }
  Edges edges(char32_t, char32_t) const override { return std::nullopt; }

 private:
  Regex what_;
  std::string with_;
};

std::string text_of(const json& object, const char* key, const std::string& where) {
  const json value = object.value(key, json());
  if (!value.is_string() || value.get_ref<const std::string&>().size() > kMaxContentBytes) {
    throw InputError(
        fmt::format("{}{}: not a string of at most {} bytes", where, key, kMaxContentBytes));
  }
  return value.get<std::string>();
}

std::unique_ptr<NormalizerStep> make_replace(const json& step, const std::string& where) {
  const std::string with = text_of(step, "content", where);
  const json pattern = step.value("pattern", json());
  if (pattern.is_object() && pattern.contains("Regex"))
    return std::make_unique<ReplaceRegex>(Regex(text_of(pattern, "Regex", where), where), with);
  if (!pattern.is_object() || !pattern.contains("String"))
    throw InputError(where + "pattern: neither String nor Regex");
  const std::string what = text_of(pattern, "String", where);
  if (what.empty()) throw InputError(where + "pattern: empty");
  return std::make_unique<ReplaceString>(what, with);
}

}  // namespace

Normalizer::Normalizer(const json& value, const std::string& where) {
  if (!value.is_null()) add(value, where + "normalizer: ", 0);
}

void Normalizer::add(const json& step, const std::string& where, int depth) {
  const json type = step.is_object() ? step.value("type", json()) : json();
  if (!type.is_string() || depth > kMaxDepth) throw InputError(where + "not a normalizer");
  const auto name = type.get<std::string>();
  const std::string inner = where + name + ": ";
  const auto put = [&](std::unique_ptr<NormalizerStep> made, bool prefix = false) {
    if (steps_.size() == kMaxSteps) throw InputError(where + "too many steps");
    steps_.push_back({std::move(made), prefix});
    prefixed_ = prefixed_ || prefix;
  };
  if (name == "Sequence") {
    const json steps = step.value("normalizers", json());
    if (!steps.is_array()) throw InputError(inner + "normalizers: not a list");
    for (const json& each : steps) add(each, where, depth + 1);
  } else if (name == "NFC") {
    put(std::make_unique<NormalizationForm>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  } else if (name == "NFD") {
    put(std::make_unique<NormalizationForm>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE));
  } else if (name == "NFKC") {
    put(std::make_unique<NormalizationForm>(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT));
  } else if (name == "NFKD") {
    put(std::make_unique<NormalizationForm>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE |
                                            UTF8PROC_COMPAT));
  } else if (name == "Prepend") {
    put(std::make_unique<Prepend>(text_of(step, "prepend", inner)), true);
  } else if (name == "Replace") {
    put(make_replace(step, inner));
  } else {
    throw InputError(where + in_quotes(name) + " is not supported");
  }
}

std::string_view Normalizer::apply(std::string_view text, PieceStart start,
                                   std::string& own) const {
  const std::size_t most = kMaxGrowth * (text.size() + kMaxContentBytes);
  for (const Step& each : steps_) {
    if (text.empty()) break;  // nothing is put in front of nothing
    if (each.step->leaves(text, start)) continue;
    std::string next = each.step->apply(text, start);
    if (next.size() > most)
      throw InputError(
          fmt::format("normalizer: makes more than {} times as much of a text", kMaxGrowth));
    own = std::move(next);
    text = own;
  }
  return text;
}

Edges Normalizer::edges(char32_t left, char32_t right) const {
  Edges at = std::pair(left, right);
  for (const Step& each : steps_) {
    if (at) at = each.step->edges(at->first, at->second);
  }
  return at;
}

void Normalizer::remove_prefix() {
  std::erase_if(steps_, [](const Step& each) { return each.prefix; });
  prefixed_ = false;
}

}  // namespace roundhouse
