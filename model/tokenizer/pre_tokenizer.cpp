#include "model/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <functional>
#include <tuple>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/byte_characters.h"
#include "model/tokenizer/split.h"
#include "model/tokenizer/utf8.h"
#include "model/tokenizer/word_pattern.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 8;
constexpr std::size_t kMaxSteps = 32;

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) {
    return (c > 0x20 && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') ||
           (c > 'z' && c < 0x7f);
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
      return true;
    default:
      return false;
  }
}

// Splits at characters of a kind.
class CharacterSplit : public PreTokenizer {
 public:
  CharacterSplit(bool (*matches)(char32_t), Behavior behavior)
      : matches_(matches), behavior_(behavior) {}

  void apply(Words& words) const override {
    std::vector<Words::Range> parts;
    std::vector<Stretch> stretches;
    for (const Words::Range& word : words.ranges) {
      stretches.clear();
      std::size_t gap = word.begin;
      for (std::size_t i = word.begin; i < word.end;) {
        const CodePoint c = code_point_at(words.text, i);
        if (matches_(c.value)) {
          if (gap < i) stretches.push_back({gap, i, false});
          stretches.push_back({i, i + c.bytes, true});
          gap = i + c.bytes;
        }
        i += c.bytes;
      }
      if (gap < word.end) stretches.push_back({gap, word.end, false});
      append_parts(stretches, behavior_, parts);
    }
    words.ranges = std::move(parts);
  }

  Cut cut(char32_t left, char32_t right) const override {
    const bool l = matches_(left), r = matches_(right);
    bool between = false;
    switch (behavior_) {
      case Behavior::kIsolated:
      case Behavior::kRemoved:
        between = l || r;
        break;
      case Behavior::kContiguous:
        between = l != r;
        break;
      case Behavior::kMergedWithPrevious:
        between = l;
        break;
      case Behavior::kMergedWithNext:
        between = r;
        break;
    }
    return between ? Cut::kBetween : Cut::kHarmless;
  }

 private:
  bool (*matches_)(char32_t);
  Behavior behavior_;
};

// Words of letters, words of anything else but white space, which is left out.
class Whitespace : public PreTokenizer {
 public:
  void apply(Words& words) const override {
    std::vector<Words::Range> parts;
    for (const Words::Range& word : words.ranges) {
      Kind last = Kind::kSpace;
      for (std::size_t i = word.begin; i < word.end;) {
        const CodePoint c = code_point_at(words.text, i);
        const Kind kind = kind_of(c.value);
        if (kind != Kind::kSpace) {
          if (kind != last) parts.push_back({i, i});
          parts.back().end = i + c.bytes;
        }
        last = kind;
        i += c.bytes;
      }
    }
    words.ranges = std::move(parts);
  }
  Cut cut(char32_t left, char32_t right) const override {
    return kind_of(left) != kind_of(right) ? Cut::kBetween : Cut::kHarmless;
  }

 private:
  enum class Kind { kSpace, kWord, kOther };
  static Kind kind_of(char32_t c) {
    return is_white_space(c) ? Kind::kSpace : is_word_character(c) ? Kind::kWord : Kind::kOther;
  }
};

class RegexSplit : public PreTokenizer {
 public:
  RegexSplit(const std::string& pattern, Behavior behavior, bool invert, const std::string& where)
      : regex_(pattern, where), cuts_(pattern, where), behavior_(behavior), invert_(invert) {}

  void apply(Words& words) const override {
    std::vector<Words::Range> parts;
    std::vector<Stretch> stretches;
    for (const Words::Range& word : words.ranges) {
      stretches.clear();
      std::size_t gap = 0;
      const std::string_view text = words.at(word);
      const auto add = [&](std::size_t begin, std::size_t end, bool match) {
        stretches.push_back({word.begin + begin, word.begin + end, match != invert_});
      };
      Regex::Matches matches(regex_, text);
      while (const auto match = matches.next()) {
        if (gap != match->begin) add(gap, match->begin, false);
        add(match->begin, match->end, true);
        gap = match->end;
      }
      if (gap != text.size()) add(gap, text.size(), false);
      append_parts(stretches, behavior_, parts);
    }
    words.ranges = std::move(parts);
  }

  Cut cut(char32_t left, char32_t right) const override {
    const Cut cut = cuts_.cut(left, right);
    const bool own = behavior_ == Behavior::kIsolated || (behavior_ == Behavior::kRemoved);
    return cut == Cut::kBetween && !own ? Cut::kHarmless : cut;
  }

 private:
  Regex regex_;
  RegexCuts cuts_;
  Behavior behavior_;
  bool invert_;
};

std::vector<Words::Range> words_by(const WordPattern& pattern, const Words& words) {
  std::vector<Words::Range> parts;
  for (const Words::Range& word : words.ranges)
    pattern.append_words(words.at(word), word.begin, parts);
  return parts;
}

class WordSplit : public PreTokenizer {
 public:
  explicit WordSplit(const WordPattern& pattern) : pattern_(pattern) {}
  void apply(Words& words) const override { words.ranges = words_by(pattern_, words); }
  Cut cut(char32_t left, char32_t right) const override { return pattern_.cut(left, right); }

 private:
  const WordPattern& pattern_;
};

// A text anew, from each of its words.
void rewrite(Words& words, const std::function<void(std::string_view, bool, std::string&)>& write) {
  std::string text;
  text.reserve(words.text.size() + words.text.size() / 4);
  bool first = true;
  for (Words::Range& word : words.ranges) {
    const std::size_t begin = text.size();
    write(words.at(word), first, text);
    word = {begin, text.size()};
    first = false;
  }
  words.own = std::move(text);
  words.text = words.own;
}

// What is put in front of words.
enum class Prefix {
  kNone,
  kFirst,  // of the first of a text
  kEach,   // of each, and of the first between special tokens
};

class Prefixed : public PreTokenizer {
 public:
  explicit Prefixed(Prefix prefix) : prefix_(prefix) {}
  Prefix prefix() const { return prefix_; }

 protected:
  // Does this word get one, if it does not begin with it?
  bool wanted(const Words& words, bool first) const {
    if (prefix_ == Prefix::kFirst) return first && words.start == PieceStart::kText;
    return prefix_ == Prefix::kEach && !(first && words.start == PieceStart::kWithin);
  }

 private:
  Prefix prefix_;
};

class ByteLevel : public Prefixed {
 public:
  // The last step leaves the bytes to the vocabulary.
  ByteLevel(Prefix prefix, bool cuts, bool last) : Prefixed(prefix), cuts_(cuts), last_(last) {}

  void apply(Words& words) const override {
    if (prefix() != Prefix::kNone) prefix_spaces(words);
    if (cuts_) words.ranges = words_by(WordPattern::gpt2(), words);
    if (last_) return;
    rewrite(words, [](std::string_view word, bool, std::string& text) {
      for (const char c : word) text += characters_of_bytes()[static_cast<unsigned char>(c)];
    });
  }
  Cut cut(char32_t left, char32_t right) const override {
    return cuts_ ? WordPattern::gpt2().cut(left, right) : Cut::kHarmless;
  }
  std::pair<char32_t, char32_t> edges(char32_t left, char32_t right) const override {
    if (last_) return {left, right};
    std::string before, after;
    append_utf8(before, left);
    append_utf8(after, right);
    const auto character = [](char byte) {
      return code_point_at(characters_of_bytes()[static_cast<unsigned char>(byte)], 0).value;
    };
    return {character(before.back()), character(after.front())};
  }

 private:
  void prefix_spaces(Words& words) const {
    bool any = false, first = true;
    for (const Words::Range& word : words.ranges) {
      any = any || (wanted(words, first) && words.text[word.begin] != ' ');
      first = false;
    }
    if (!any) return;
    rewrite(words, [&](std::string_view word, bool is_first, std::string& text) {
      if (wanted(words, is_first) && word.front() != ' ') text += ' ';
      text += word;
    });
  }
  bool cuts_, last_;
};

class Metaspace : public Prefixed {
 public:
  Metaspace(std::string replacement, Prefix prefix, bool split)
      : Prefixed(prefix),
        replacement_(std::move(replacement)),
        character_(code_point_at(replacement_, 0).value),
        split_(split) {}

  void apply(Words& words) const override {
    rewrite(words, [&](std::string_view word, bool first, std::string& text) {
      if (wanted(words, first) && word.front() != ' ' && !word.starts_with(replacement_))
        text += replacement_;
      for (const char c : word) {
        if (c == ' ') {
          text += replacement_;
        } else {
          text += c;
        }
      }
    });
    if (!split_) return;
    std::vector<Words::Range> parts;
    for (const Words::Range& word : words.ranges) {
      std::size_t begin = word.begin;
      while (begin < word.end) {
        const std::size_t next = words.text.find(replacement_, begin + 1);
        const std::size_t end = std::min(next, word.end);
        parts.push_back({begin, end});
        begin = end;
      }
    }
    words.ranges = std::move(parts);
  }
  Cut cut(char32_t left, char32_t right) const override {
    return split_ && edges(left, right).second == character_ ? Cut::kBetween : Cut::kHarmless;
  }
  std::pair<char32_t, char32_t> edges(char32_t left, char32_t right) const override {
    const auto with = [&](char32_t c) { return c == U' ' ? character_ : c; };
    return {with(left), with(right)};
  }

 private:
  std::string replacement_;
  char32_t character_;
  bool split_;
};

// A boolean, or what an absent key means.
bool flag(const json& object, const char* key, bool absent, const std::string& where) {
  const json value = object.value(key, json());
  if (value.is_null()) return absent;
  if (!value.is_boolean()) throw InputError(where + key + ": must be true or false");
  return value.get<bool>();
}

std::string literal(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    if (is_punctuation(static_cast<unsigned char>(c))) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

std::unique_ptr<PreTokenizer> make_split(const json& step, const std::string& where) {
  const json pattern = step.value("pattern", json());
  const bool is_regex = pattern.is_object() && pattern.contains("Regex");
  const json text =
      pattern.is_object() ? pattern.value(is_regex ? "Regex" : "String", json()) : json();
  if (!text.is_string() || text == "")
    throw InputError(where + "pattern: neither String nor Regex with a text");
  const auto source = text.get<std::string>();
  const Behavior behavior = behavior_of(step.value("behavior", json()), where);
  const bool invert = flag(step, "invert", false, where);
  const WordPattern* known = is_regex ? WordPattern::find(source) : nullptr;
  // Everything is in a match: the parts are the matches.
  if (known != nullptr && behavior == (invert ? Behavior::kRemoved : Behavior::kIsolated))
    return std::make_unique<WordSplit>(*known);
  return std::make_unique<RegexSplit>(is_regex ? source : literal(source), behavior, invert, where);
}

std::unique_ptr<PreTokenizer> make_metaspace(const json& step, const std::string& where) {
  const json text = step.value("replacement", json());
  if (!text.is_string() || text == "" ||
      code_point_at(text.get_ref<const std::string&>(), 0).bytes !=
          text.get_ref<const std::string&>().size())
    throw InputError(where + "replacement: not a character");
  // Files from before there was the scheme.
  const char* old = flag(step, "add_prefix_space", true, where) ? "always" : "never";
  const json scheme = step.value("prepend_scheme", json(old));
  if (scheme != "always" && scheme != "first" && scheme != "never")
    throw InputError(where + "prepend_scheme: not one of always, first, never");
  const Prefix prefix = scheme == "always"  ? Prefix::kEach
                        : scheme == "first" ? Prefix::kFirst
                                            : Prefix::kNone;
  return std::make_unique<Metaspace>(text.get<std::string>(), prefix,
                                     flag(step, "split", true, where));
}

}  // namespace

PreTokenizers::PreTokenizers() = default;
PreTokenizers::PreTokenizers(PreTokenizers&&) noexcept = default;
PreTokenizers::~PreTokenizers() = default;

PreTokenizers::PreTokenizers(const json& value, const std::string& where) {
  if (!value.is_null()) add(value, where + "pre_tokenizer: ", 0, true);
}

void PreTokenizers::add(const json& step, const std::string& where, int depth, bool last) {
  const json type = step.is_object() ? step.value("type", json()) : json();
  if (!type.is_string() || depth > kMaxDepth) throw InputError(where + "not a pre-tokenizer");
  const auto name = type.get<std::string>();
  const std::string inner = where + name + ": ";
  if (steps_.size() == kMaxSteps) throw InputError(where + "too many steps");
  if (name == "Sequence") {
    const json steps = step.value("pretokenizers", json());
    if (!steps.is_array()) throw InputError(inner + "pretokenizers: not a list");
    for (std::size_t i = 0; i < steps.size(); ++i)
      add(steps[i], where, depth + 1, last && i + 1 == steps.size());
  } else if (name == "Split") {
    steps_.push_back(make_split(step, inner));
  } else if (name == "Digits") {
    const bool each = flag(step, "individual_digits", false, inner);
    steps_.push_back(std::make_unique<CharacterSplit>(
        is_numeric, each ? Behavior::kIsolated : Behavior::kContiguous));
  } else if (name == "Punctuation") {
    steps_.push_back(std::make_unique<CharacterSplit>(
        is_punctuation, behavior_of(step.value("behavior", json("Isolated")), inner)));
  } else if (name == "WhitespaceSplit") {
    steps_.push_back(std::make_unique<CharacterSplit>(is_white_space, Behavior::kRemoved));
  } else if (name == "Whitespace") {
    steps_.push_back(std::make_unique<Whitespace>());
  } else if (name == "ByteLevel") {
    const bool prefix = flag(step, "add_prefix_space", true, inner);
    late_prefix_ = late_prefix_ || (prefix && !steps_.empty());
    steps_.push_back(std::make_unique<ByteLevel>(prefix ? Prefix::kEach : Prefix::kNone,
                                                 flag(step, "use_regex", true, inner), last));
    bytes_ = last;
  } else if (name == "Metaspace") {
    auto made = make_metaspace(step, inner);
    late_prefix_ = late_prefix_ || (static_cast<const Prefixed&>(*made).prefix() != Prefix::kNone &&
                                    !steps_.empty());
    steps_.push_back(std::move(made));
  } else {
    throw InputError(where + in_quotes(name) + " is not supported");
  }
}

void PreTokenizers::apply(Words& words) const {
  words.ranges = {{0, words.text.size()}};
  for (const auto& step : steps_) step->apply(words);
}

Cut PreTokenizers::cut(char32_t left, char32_t right) const {
  if (late_prefix_) return Cut::kNo;
  for (const auto& step : steps_) {
    const Cut cut = step->cut(left, right);
    if (cut != Cut::kHarmless) return cut;
    std::tie(left, right) = step->edges(left, right);
  }
  return Cut::kHarmless;
}

std::pair<char32_t, char32_t> PreTokenizers::edges(char32_t left, char32_t right) const {
  for (const auto& step : steps_) std::tie(left, right) = step->edges(left, right);
  return {left, right};
}

}  // namespace roundhouse
