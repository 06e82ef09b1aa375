// Ids of words that were tokenized before: texts repeat their words, and looking one up costs less than merging it again.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace roundhouse {

// For one thread and one tokenizer. Of bounded size: it forgets everything when it is full.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 48;

  std::optional<std::span<const std::int32_t>> find(std::string_view word) const {
    const auto found = words_.find(word);
    if (found == words_.end()) return std::nullopt;
    return std::span(ids_).subspan(found->second.begin, found->second.count);
  }
  void add(std::string_view word, std::span<const std::int32_t> ids) {
    if (word.size() > kMaxWordBytes) return;
    if (words_.size() >= kMaxWords) {
      words_.clear();
      ids_.clear();
    }
    words_.emplace(word, Range{ids_.size(), ids.size()});
    ids_.insert(ids_.end(), ids.begin(), ids.end());
  }

 private:
  static constexpr std::size_t kMaxWords = std::size_t{1} << 16;
  struct Range {
    std::size_t begin, count;
  };
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view word) const {
      return std::hash<std::string_view>()(word);
    }
  };
  std::unordered_map<std::string, Range, Hash, std::equal_to<>> words_;
  std::vector<std::int32_t> ids_;
};

}  // namespace roundhouse
