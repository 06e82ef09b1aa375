// A tokenizer in the steps of Hugging Face's: special tokens are found, the text between them is normalized, cut into words,
// and their pairs are merged.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/tokenizer/bpe_model.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/pre_tokenizer.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_files.h"

namespace roundhouse {

class PipelineTokenizer : public Tokenizer {
 public:
  PipelineTokenizer(Normalizer normalizer, PreTokenizers words, BpeModel model);

  // A token that is not in the vocabulary. Throws InputError beginning with `where`: the id or the name is another's.
  void add_token(const std::string& token, const nlohmann::json& id, const std::string& where);
  // What stands in front of and behind a text, by what the configuration and the file (`first`, `last`) say.
  void set_around(const TokenizerConfig& config, const std::optional<std::string>& first,
                  const std::optional<std::string>& last);

  std::int32_t vocabulary() const override { return model_.size(); }
  std::int32_t bos() const override { return bos_; }
  std::int32_t eos() const override { return eos_; }
  bool may_cut(char32_t left, char32_t right) const override;
  std::optional<std::int32_t> id_of_token(const std::string& name) const override;
  std::vector<std::string> problems() const override;
  bool has_normalized_tokens() const override { return true; }
  void set_normalized_tokens(std::vector<SpecialToken> tokens) override;

 private:
  void append_part(std::string_view part, PieceStart start, WordCache& cache,
                   std::vector<std::int32_t>& ids) const override;
  struct Work {
    Words words;
    BytePairMerges::Work merges;
  };
  void append_words(std::string_view text, PieceStart start, WordCache& cache, Work& work,
                    std::vector<std::int32_t>& ids) const;
  void append_characters(std::string_view word, WordCache& cache, Work& work,
                         std::vector<std::int32_t>& ids) const;
  void append_word(const WordCache::Key& key, WordCache& cache, Work& work,
                   std::vector<std::int32_t>& ids) const;

  Normalizer normalizer_;
  PreTokenizers words_;
  BpeModel model_;
  std::map<std::string, std::int32_t> added_;
  std::map<std::int32_t, std::string> names_of_added_;
  SpecialTokens normalized_;  // found in the normalized text
  CharacterPairs in_normalized_;
  bool strips_ = false;  // does one of those take white space?
  std::int32_t bos_ = -1;
  std::int32_t eos_ = -1;
};

}  // namespace roundhouse
