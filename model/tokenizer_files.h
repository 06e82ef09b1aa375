// What load_tokenizer() chooses between.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "model/tokenizer.h"

namespace roundhouse {

// tokenizer_config.json; an absent key, or an absent file, leaves the choice to the kind of tokenizer.
struct TokenizerConfig {
  std::filesystem::path file;  // for messages
  std::optional<bool> add_bos;
  std::optional<bool> add_prefix_space;
  std::optional<std::string> bos;  // the name of the token
};
// Throws InputError naming file and key.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

// tokenizer.model
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file,
                                              const TokenizerConfig& config);
// vocab.json and merges.txt
std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges,
                                         const TokenizerConfig& config);
// tokenizer.json, of byte-level BPE
std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& file,
                                         const TokenizerConfig& config);

}  // namespace roundhouse
