#include "pipeline/config/overrides.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/quote.h"
#include "base/section.h"

namespace roundhouse {

void apply_override(YamlNode& root, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  const std::string key = assignment.substr(0, equals);
  if (equals == std::string::npos || key.empty()) {
    throw InputError("--set " + in_quotes(assignment) +
                     ": must be KEY=VALUE, as in calibration.samples=64");
  }
  const std::string where = override_of(key);
  YamlNode value = parse_yaml(assignment.substr(equals + 1), [&](int) { return where; });
  value.where = where;

  YamlNode* at = &root;
  for (std::size_t begin = 0; begin <= key.size();) {
    const std::size_t dot = std::min(key.find('.', begin), key.size());
    const std::string word = key.substr(begin, dot - begin);
    if (word.empty()) throw InputError(where + ": is not a key");
    const std::string before = key.substr(0, begin > 0 ? begin - 1 : 0);
    begin = dot + 1;
    if (at->kind == YamlNode::Kind::kSequence && is_whole_number(word)) {
      std::size_t index = 0;
      const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), index);
      if (error != std::errc{} || index >= at->items.size()) {
        throw InputError(fmt::format("{}: {} has {} entries, the first of which is 0", where,
                                     in_quotes(before), at->items.size()));
      }
      at = &at->items[index];
      continue;
    }
    if (at->kind == YamlNode::Kind::kNull) at->kind = YamlNode::Kind::kMap;
    if (at->kind != YamlNode::Kind::kMap) {
      throw InputError(where + ": " + in_quotes(before) + " is not a group of keys");
    }
    auto found = std::ranges::find(at->keys, word);
    if (found == at->keys.end()) {
      at->keys.push_back(word);
      at->items.emplace_back().where = where;
      found = at->keys.end() - 1;
    }
    at = &at->items[found - at->keys.begin()];
  }
  *at = std::move(value);
}

}  // namespace roundhouse
