// A vocabulary with merges: words to ids, as the model "BPE" of Hugging Face's tokenizers does it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/tokenizer/byte_pair_merges.h"
#include "model/tokenizer/character_pairs.h"

namespace roundhouse {

class BpeModel {
 public:
  struct Settings {
    bool byte_fallback =
        false;              // a character without a token is spelled in tokens "<0x00>" to "<0xFF>"
    bool fuse_unk = false;  // unknown characters in a row are one
    bool ignore_merges = false;  // a word that is a token is that token
    std::string unk_token;       // of characters that are neither; empty: they are dropped
  };
  // An object of tokens and ids. Messages of the InputErrors begin with `where`.
  BpeModel(const nlohmann::json& vocabulary, const std::string& where);
  void add_merge(const std::string& left, const std::string& right, const std::string& where);
  void set(Settings settings, const std::string& where);
  // What begins with this call are words of bytes, each of which has a character in the vocabulary (characters_of_bytes()).
  void take_bytes(const std::string& where);
  bool takes_bytes() const { return bytes_; }

  // One more than the highest id.
  std::int32_t size() const { return size_; }
  std::optional<std::int32_t> id_of(std::string_view token) const;
  void for_each(const std::function<void(const std::string&, std::int32_t)>& function) const;
  // Bytes without a token: they are dropped from texts.
  std::vector<unsigned> missing_bytes() const;

  // May a word be cut between these two characters? Then its ids are those of the parts, unless the whole is a token and
  // merges are ignored. Never for words of bytes.
  bool may_cut(char32_t left, char32_t right) const;
  // Is a word looked up whole first?
  bool whole_words() const { return settings_.ignore_merges; }
  // The token that a whole word is, if merges are ignored for such. `hash` is hash_of_word().
  std::optional<std::int32_t> whole(std::string_view word, std::uint64_t hash) const;
  // Appends the ids of a word to work.ids, which is empty.
  void encode(std::string_view word, BytePairMerges::Work& work) const;

 private:
  // `unknown`: one came before, and is not written yet.
  void add_known(std::int32_t id, bool& unknown, std::vector<std::int32_t>& ids) const;
  void add_missing(std::string_view character, bool& unknown, std::vector<std::int32_t>& ids) const;
  bool is_known(char32_t c) const { return all_fallbacks_ || characters_.contains(c); }

  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  std::unordered_map<std::string, std::int32_t, Hash, std::equal_to<>> ids_;
  std::unordered_map<char32_t, std::int32_t> characters_;
  std::array<std::int32_t, 256> id_of_byte_{};  // byte-level; -1: none
  std::array<std::int32_t, 256> fallback_{};    // "<0x..>"; -1: none
  bool all_fallbacks_ = false;
  bool merges_fallbacks_ = false;  // a merge takes what may stand for an unknown character
  bool all_bytes_ = false;         // each has a token
  BytePairMerges merges_;
  HashFilter whole_;                  // of tokens as words of bytes
  std::vector<std::int32_t> merged_;  // that merges take
  CharacterPairs in_tokens_;
  Settings settings_;
  std::int32_t unk_ = -1;
  std::int32_t size_ = 0;
  bool bytes_ = false;
};

}  // namespace roundhouse
