// Ids of words that were tokenized before: texts repeat their words, and looking one up costs less than merging it again.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "model/tokenizer/word_hash.h"

namespace roundhouse {

// For one thread and one tokenizer. Of bounded size: it forgets everything when it is full.
class WordCache {
 public:
  static constexpr std::size_t kMaxWordBytes = 48;

  // A word with its hash. The place where it may be is fetched from memory meanwhile.
  struct Key {
    std::string_view word;
    std::uint64_t hash;
  };
  Key key(std::string_view word) const {
    const Key key{word, hash_of_word(word)};
    if (!places_.empty()) __builtin_prefetch(&places_[key.hash >> kShift]);
    return key;
  }
  std::optional<std::span<const std::int32_t>> find(const Key& key) const {
    if (places_.empty() || key.word.size() > kMaxWordBytes) return std::nullopt;
    const Place& place = places_[place_of(key)];
    if (place.count == 0) return std::nullopt;
    return std::span(ids_).subspan(place.begin, place.count - 1);
  }
  // Precondition: find() does not.
  void add(const Key& key, std::span<const std::int32_t> ids) {
    if (key.word.size() > kMaxWordBytes) return;
    if (words_ >= kMaxWords || places_.empty()) {
      places_.assign(kPlaces, {});
      ids_.clear();
      words_ = 0;
    }
    Place& place = places_[place_of(key)];
    std::memcpy(place.word.data(), key.word.data(), key.word.size());
    place.bytes = static_cast<std::uint8_t>(key.word.size());
    place.begin = static_cast<std::uint32_t>(ids_.size());
    place.count = static_cast<std::uint16_t>(ids.size() + 1);
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    ++words_;
  }

 private:
  static constexpr int kShift = 64 - 16;
  static constexpr std::size_t kPlaces = std::size_t{1} << (64 - kShift);
  static constexpr std::size_t kMaxWords = kPlaces / 2;
  // A line of the processor's cache for each word.
  struct alignas(64) Place {
    std::uint32_t begin = 0;
    std::uint16_t count = 0;  // of ids, and one; 0: no word
    std::uint8_t bytes = 0;
    std::array<char, kMaxWordBytes> word;
  };
  // Where the word is, or would be.
  std::size_t place_of(const Key& key) const {
    std::size_t at = key.hash >> kShift;
    while (places_[at].count != 0 &&
           std::string_view(places_[at].word.data(), places_[at].bytes) != key.word)
      at = (at + 1) % kPlaces;
    return at;
  }
  std::vector<Place> places_;
  std::vector<std::int32_t> ids_;
  std::size_t words_ = 0;
};

}  // namespace roundhouse
