// Text to token ids, exactly as the model's own tokenizer does it, with one exception: the name of a special token inside
// a text ("</s>") is spelled out in ordinary pieces, where Hugging Face's tokenizers would give the token's id.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Without special tokens around it. Invalid UTF-8 is an InputError.
  virtual std::vector<std::int32_t> encode(std::string_view text) const = 0;
  virtual std::int32_t vocabulary() const = 0;
  // What the model's tokenizer puts in front of a text (LLaMA: <s>), or -1 for nothing (add_bos_token false).
  virtual std::int32_t bos() const = 0;

  std::vector<std::int32_t> encode_with_bos(std::string_view text) const;
};

// From DIRECTORY/tokenizer.model (SentencePiece), else vocab.json and merges.txt, else tokenizer.json (byte-level BPE), and
// tokenizer_config.json. Throws InputError naming the file.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

// Hash of the files that decide how a text is cut into tokens, special tokens included: name and content of each.
std::string tokenizer_content(const std::filesystem::path& directory);

// Files that an exported checkpoint must carry along (those that exist): tokenizer.model, tokenizer.json, ...
std::vector<std::filesystem::path> tokenizer_files(const std::filesystem::path& directory);

}  // namespace roundhouse
