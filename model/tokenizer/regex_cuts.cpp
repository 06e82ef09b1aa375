#include "model/tokenizer/regex_cuts.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxPositions = 200;  // that of Nemo has 40
constexpr int kMaxDepth = 20;

}  // namespace

// Reads a pattern in PCRE2's syntax as pcre_of() writes it.
class RegexReader {
 public:
  RegexReader(std::string_view pattern, const std::string& where, RegexCuts& cuts)
      : rest_(pattern), where_(where), cuts_(cuts) {}

  // False for what is not taken apart.
  bool run() {
    const auto whole = alternatives(false, 0);
    if (!whole || !rest_.empty() || whole->nullable) return false;
    for (const std::size_t first : whole->first) {
      if (std::ranges::find(whole->last, first) != whole->last.end())
        cuts_.positions_[first].alone =
            !cuts_.positions_[first].looks_ahead && !cuts_.positions_[first].kept;
    }
    return true;
  }

 private:
  struct Part {
    std::vector<std::size_t> first, last;
    bool nullable = true;
    bool ends = false;  // a look ahead: nothing may follow
  };
  using MaybePart = std::optional<Part>;

  bool take(std::string_view text) {
    if (!rest_.starts_with(text)) return false;
    rest_.remove_prefix(text.size());
    return true;
  }
  void connect(const Part& left, const Part& right) {
    for (const std::size_t i : left.last) {
      for (const std::size_t j : right.first) cuts_.neighbours_.emplace_back(i, j);
    }
  }
  static void append(std::vector<std::size_t>& to, const std::vector<std::size_t>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }

  MaybePart alternatives(bool caseless, int depth) {
    if (depth > kMaxDepth) return std::nullopt;
    Part all{.first = {}, .last = {}, .nullable = false};
    do {
      const MaybePart one = sequence(caseless, depth);
      if (!one) return std::nullopt;
      append(all.first, one->first);
      append(all.last, one->last);
      all.nullable = all.nullable || one->nullable;
      all.ends = all.ends || one->ends;
    } while (take("|"));
    return all;
  }

  MaybePart sequence(bool caseless, int depth) {
    Part all;
    const std::size_t begin = cuts_.positions_.size();
    while (!rest_.empty() && rest_.front() != '|' && rest_.front() != ')') {
      if (all.ends) return std::nullopt;
      const MaybePart next = repeated(caseless, depth);
      if (!next || cuts_.neighbours_.size() > kMaxPositions * kMaxPositions) return std::nullopt;
      connect(all, *next);
      if (all.nullable) append(all.first, next->first);
      if (!next->nullable) all.last.clear();
      append(all.last, next->last);
      all.nullable = all.nullable && next->nullable;
      all.ends = next->ends;
    }
    if (depth == 0 && keeps_) {
      for (std::size_t i = begin; i < cuts_.positions_.size(); ++i) cuts_.positions_[i].kept = true;
      keeps_ = false;
    }
    return all;
  }

  MaybePart repeated(bool caseless, int depth) {
    MaybePart part = atom(caseless, depth);
    if (!part) return std::nullopt;
    bool once_only = true;
    if (take("?")) {
      part->nullable = true;
    } else if (take("*")) {
      part->nullable = true;
      once_only = false;
    } else if (take("+")) {
      once_only = false;
    } else if (rest_.starts_with("{")) {
      const std::size_t end = rest_.find('}');
      if (end == rest_.npos) return std::nullopt;
      const std::string_view counts = rest_.substr(1, end - 1);
      const std::string_view least = counts.substr(0, counts.find(','));
      if (counts.find_first_not_of("0123456789,") != counts.npos || (least != "0" && least != "1"))
        return std::nullopt;
      part->nullable = part->nullable || least == "0";
      once_only = false;
      rest_.remove_prefix(end + 1);
    } else {
      return part;
    }
    if (part->ends) return std::nullopt;
    if (!take("?") && take("+")) keeps_ = true;
    if (!once_only) connect(*part, *part);
    return part;
  }

  MaybePart atom(bool caseless, int depth) {
    if (rest_.starts_with("(?>")) keeps_ = true;
    for (const auto& [opening, inner_caseless] : {std::pair(std::string_view("(?:"), caseless),
                                                  {"(?i:", true},
                                                  {"(?-i:", false},
                                                  {"(?>", caseless}}) {
      if (!take(opening)) continue;
      const MaybePart inner = alternatives(inner_caseless, depth + 1);
      return inner && take(")") ? inner : std::nullopt;
    }
    if (take("(?=") || take("(?!")) {
      const std::size_t positions = cuts_.positions_.size();
      const std::size_t neighbours = cuts_.neighbours_.size();
      const MaybePart inner = alternatives(caseless, depth + 1);
      // A single character, looked at.
      if (!inner || !take(")") || cuts_.positions_.size() != positions + 1 ||
          cuts_.neighbours_.size() != neighbours || inner->ends)
        return std::nullopt;
      cuts_.positions_.back().looks_ahead = true;
      return Part{{positions}, {positions}, false, true};
    }
    if (rest_.starts_with("(?")) return std::nullopt;
    if (take("(")) {
      const MaybePart inner = alternatives(caseless, depth + 1);
      return inner && take(")") ? inner : std::nullopt;
    }
    return set(caseless);
  }

  // One position: a class, an escape, or a character.
  MaybePart set(bool caseless) {
    std::size_t length = 0;
    if (rest_.front() == '[') {
      length = rest_.starts_with("[^]") ? 3 : rest_.starts_with("[]") ? 2 : 1;
      while (length < rest_.size() && rest_[length] != ']') {
        if (rest_[length] == '\\') {
          ++length;
        } else if (rest_.substr(length).starts_with("[:")) {
          length = rest_.find(":]", length) + 1;
        }
        ++length;
      }
      ++length;
    } else if (rest_.front() == '\\') {
      if (rest_.size() < 2) return std::nullopt;
      const char c = rest_[1];
      if (c == 'p' || c == 'P' || rest_.starts_with("\\x{")) {
        length = rest_.find('}') + 1;
      } else if (c == 'x') {
        length = 2;
        while (length < 4 && length < rest_.size() &&
               std::string_view("0123456789abcdefABCDEF").find(rest_[length]) != rest_.npos)
          ++length;
      } else if (std::string_view("bBAzZ").find(c) != rest_.npos) {
        return std::nullopt;
      } else {
        length = 1 + code_point_at(rest_, 1).bytes;
      }
    } else if (std::string_view("^$*+?").find(rest_.front()) != rest_.npos) {
      return std::nullopt;
    } else {
      length = code_point_at(rest_, 0).bytes;
    }
    if (length == 0 || length > rest_.size() || cuts_.positions_.size() == kMaxPositions)
      return std::nullopt;
    // The pattern is translated again, which changes nothing in what is translated but sets with names.
    const std::string source(rest_.substr(0, length));
    rest_.remove_prefix(length);
    cuts_.positions_.push_back({.set = Regex((caseless ? "(?i:" : "(?:") + source + ")", where_)});
    const std::size_t position = cuts_.positions_.size() - 1;
    return Part{{position}, {position}, false, false};
  }

  std::string_view rest_;
  const std::string& where_;
  RegexCuts& cuts_;
  bool keeps_ = false;  // what was taken is not given back: other positions may go without
};

RegexCuts::RegexCuts(const std::string& pattern, const std::string& where) {
  const std::string translated = pcre_of(pattern, where);
  known_ = RegexReader(translated, where, *this).run();
}

bool RegexCuts::holds(const Position& position, char32_t c) const {
  if (position.looks_ahead) return true;
  std::string text;
  append_utf8(text, c);
  const auto match = Regex::Matches(position.set, text).next();
  return match && match->begin == 0 && match->end == text.size();
}

Cut RegexCuts::cut(char32_t left, char32_t right) const {
  if (!known_) return Cut::kNo;
  // Each position is asked once for each of the two.
  std::vector<bool> before, after;
  bool begins = false;
  for (const Position& position : positions_) {
    before.push_back(!position.looks_ahead && holds(position, left));
    after.push_back(holds(position, right));
    begins = begins || (position.alone && after.back());
  }
  for (const auto& [i, j] : neighbours_) {
    if (before[i] && after[j]) return Cut::kNo;
  }
  return begins ? Cut::kBetween : Cut::kHarmless;
}

}  // namespace roundhouse
