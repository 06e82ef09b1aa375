// What load_tokenizer() chooses between.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace roundhouse {

class Tokenizer;

// tokenizer_config.json; an absent key, or an absent file, leaves the choice to the kind of tokenizer.
struct TokenizerConfig {
  std::filesystem::path file;  // for messages
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_prefix_space;
  std::optional<bool>
      legacy;  // SentencePiece: also what follows a special token begins with a space
  bool split_special_tokens = false;  // names of special tokens in a text are ordinary text
  std::optional<std::string> bos;     // the name of the token
  std::optional<std::string> eos;
  std::optional<std::string> tokenizer_class;
  bool own_code = false;  // "auto_map": the model brings a tokenizer of its own
};
// Throws InputError naming file and key.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory);

// tokenizer.model, and what a tokenizer.json beside it has to say
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file,
                                              const TokenizerConfig& config);
// vocab.json and merges.txt, and what a tokenizer.json beside them has to say
std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges,
                                         const TokenizerConfig& config);
// tokenizer.json, of byte-level BPE
std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& file,
                                         const TokenizerConfig& config);

}  // namespace roundhouse
