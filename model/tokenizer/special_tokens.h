// The names of special tokens in a text ("</s>"): Hugging Face's tokenizers look for them before anything else, and each is
// one id, whatever the vocabulary would make of its letters.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "model/tokenizer/tokenizer_files.h"

namespace roundhouse {

struct SpecialToken {
  std::string text;
  std::int32_t id = 0;
  bool strips_left = false;  // takes the white space before it, too ("lstrip")
  bool strips_right = false;
  bool single_word = false;  // only where no word continues on either side
  bool special = true;       // not only added: ordinary text with split_special_tokens
  bool normalized = false;   // its name is normalized, and found in the normalized text
};

class SpecialTokens {
 public:
  // Of two tokens with the same name the first counts. An empty name is no token.
  void add(SpecialToken token);
  bool empty() const { return by_length_.empty(); }

  struct Found {
    std::size_t begin, end;  // with the white space that it takes
    const SpecialToken* token;
  };
  // The leftmost that begins in [from, until), the longest of those that begin there; it takes no white space before `least`.
  // Precondition: text is UTF-8.
  std::optional<Found> find(std::string_view text, std::size_t least, std::size_t from,
                            std::size_t until) const;
  // May a text be cut between these two characters without a single word becoming one, or none?
  bool may_cut(char32_t left, char32_t right) const {
    return !ends_of_words_.contains(left) && !begins_of_words_.contains(right);
  }
  // Where the first token may begin that takes white space from before byte `end`, plus one; `end` if there is none such.
  std::size_t horizon(std::string_view text, std::size_t end) const;

 private:
  struct HashOfText {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const {
      return std::hash<std::string_view>()(text);
    }
  };
  using ByText = std::unordered_map<std::string, SpecialToken, HashOfText, std::equal_to<>>;
  std::map<std::size_t, ByText, std::greater<>>
      by_length_;                                       // of the name in bytes, the longest first
  std::array<bool, 256> begins_{};                      // does a name begin with this byte?
  bool strips_left_ = false;                            // does any?
  std::set<char32_t> begins_of_words_, ends_of_words_;  // of names that are single words
};

// What the files of a tokenizer declare: added_tokens_decoder of tokenizer_config.json, tokenizer.json, added_tokens.json,
// and the tokens that have a role (bos_token, ..) in tokenizer_config.json or special_tokens_map.json. Roles that no file
// mentions are those of `defaults` (role, name). `id_of` looks a name up in the vocabulary; a name that is not there is no
// token. Throws InputError naming file and key.
std::vector<SpecialToken> read_special_tokens(
    const TokenizerConfig& config, const std::vector<std::pair<std::string, std::string>>& defaults,
    const std::function<std::optional<std::int32_t>(const std::string&)>& id_of);

}  // namespace roundhouse
