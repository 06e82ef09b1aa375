#include "base/quote.h"

#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

namespace roundhouse {
namespace {

constexpr std::size_t kLongestName = 200;

// One character or one byte that is none, as it is shown; how many bytes it is.
std::pair<std::string, std::size_t> shown(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const std::size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xe0 ? 2 : byte(0) < 0xf0 ? 3 : 4;
  const std::string_view character = text.substr(0, length);
  const bool whole = utf8_prefix(character) == length;
  // U+0080 to U+009F are control characters too, U+2028 and U+2029 end lines, and U+202A to U+202E and U+2066 to U+2069 turn
  // the direction of what follows.
  const bool control = byte(0) < 0x20 || byte(0) == 0x7f ||
                       (whole && length == 2 && byte(0) == 0xc2 && byte(1) < 0xa0) ||
                       (whole && length == 3 && byte(0) == 0xe2 &&
                        ((byte(1) == 0x80 && byte(2) >= 0xa8 && byte(2) <= 0xae) ||
                         (byte(1) == 0x81 && byte(2) >= 0xa6 && byte(2) <= 0xa9)));
  if (whole && !control) return {std::string(character), length};
  if (byte(0) == '\n') return {"\\n", 1};
  if (byte(0) == '\r') return {"\\r", 1};
  if (byte(0) == '\t') return {"\\t", 1};
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {{'\\', 'x', kDigits[byte(0) >> 4], kDigits[byte(0) & 15]}, 1};
}

// Insertions, deletions, replacements and swaps of neighbours that turn one word into the other.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::array<std::vector<std::size_t>, 3> rows;  // of the table: this one and the two before
  for (auto& row : rows) row.resize(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) rows[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    auto& now = rows[i % 3];
    const auto& before = rows[(i + 2) % 3];
    now[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      now[j] =
          std::min({before[j] + 1, now[j - 1] + 1, before[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], rows[(i + 1) % 3][j - 2] + 1);
    }
  }
  return rows[a.size() % 3][b.size()];
}

}  // namespace

std::size_t utf8_prefix(std::string_view text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const std::size_t n = text.size();
  for (std::size_t i = 0; i < n;) {
    const unsigned char lead = s[i];
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || n - i < length) return i;
    // The second byte excludes overlong forms, surrogates and what lies beyond U+10FFFF.
    const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (s[i + 1] < low || s[i + 1] > high) return i;
    for (std::size_t j = 2; j < length; ++j) {
      if ((s[i + j] & 0xc0) != 0x80) return i;
    }
    i += length;
  }
  return n;
}

std::string printable(std::string_view text, std::size_t longest) {
  // Enough of both ends; the middle of a long text is not looked at.
  const bool cut = text.size() > 2 * longest;
  std::vector<std::string> head, tail;
  std::size_t bytes = 0;
  const auto add = [&](std::string_view part, std::vector<std::string>& to) {
    while (!part.empty()) {
      auto [word, length] = shown(part);
      part.remove_prefix(length);
      bytes += word.size();
      to.push_back(std::move(word));
    }
  };
  add(cut ? text.substr(0, longest) : text, head);
  if (cut) {
    std::string_view end = text.substr(text.size() - longest);
    // From the beginning of a character on, if there is one.
    for (int i = 0; i < 3 && (static_cast<unsigned char>(end.front()) & 0xc0) == 0x80; ++i)
      end.remove_prefix(1);
    add(end, tail);
  } else if (bytes > longest) {
    std::swap(head, tail);
    head = tail;
  }
  const auto joined = [](auto begin, auto end) {
    std::string all;
    for (; begin != end; ++begin) all += *begin;
    return all;
  };
  if (tail.empty()) return joined(head.begin(), head.end());

  const std::string middle = fmt::format(" ... {} bytes ... ", text.size());
  const std::size_t room = longest > middle.size() ? (longest - middle.size()) / 2 : 0;
  auto last = head.begin();
  for (std::size_t n = 0; last != head.end() && n + last->size() <= room; ++last) n += last->size();
  auto first = tail.end();
  for (std::size_t n = 0; first != tail.begin() && n + std::prev(first)->size() <= room;)
    n += (--first)->size();
  return joined(head.begin(), last) + middle + joined(first, tail.end());
}

std::string printable_line(std::string_view text) {
  constexpr std::size_t kLongestLine = 4000;
  while (text.ends_with('\n')) text.remove_suffix(1);
  return printable(text, kLongestLine);
}

std::string in_quotes(std::string_view name) { return "\"" + printable(name, kLongestName) + "\""; }

std::string in_quotes(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + in_quotes(std::string_view(names[i]));
  if (names.size() > kShown) text += fmt::format(" and {} more", names.size() - kShown);
  return text;
}

std::vector<std::string> nearest_words(std::string_view word, const std::vector<std::string>& known,
                                       std::size_t most) {
  constexpr std::size_t kLongest = 200;  // longer ones are not mistyped
  if (word.size() > kLongest) return {};
  const std::size_t furthest = 1 + word.size() / 4;
  std::vector<std::pair<std::size_t, std::string>> near;
  for (const std::string& each : known) {
    const auto longer = std::max(each.size(), word.size()) - std::min(each.size(), word.size());
    if (longer > furthest) continue;
    const std::size_t distance = edit_distance(word, each);
    if (distance <= furthest) near.emplace_back(distance, each);
  }
  std::ranges::stable_sort(near, {}, &std::pair<std::size_t, std::string>::first);
  std::vector<std::string> words;
  for (std::size_t i = 0; i < std::min(near.size(), most); ++i) words.push_back(near[i].second);
  return words;
}

}  // namespace roundhouse
