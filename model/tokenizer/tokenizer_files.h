// What load_tokenizer() chooses between.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace roundhouse {

class BpeModel;
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

// tokenizer.model
std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file,
                                              const TokenizerConfig& config);
// The pieces of a tokenizer.model that texts are made of, with their ids: those of the model's own use are left out.
std::vector<std::pair<std::string, std::int32_t>> sentencepiece_pieces(
    const std::filesystem::path& file);
// vocab.json and merges.txt
std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges,
                                         const TokenizerConfig& config);
// tokenizer.json, of BPE
std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file,
                                               const TokenizerConfig& config);
// A merge as a line of merges.txt. Throws InputError beginning with `where`.
void add_merge_line(BpeModel& model, const std::string& line, const std::string& where);

}  // namespace roundhouse
