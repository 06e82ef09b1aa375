// Text to token ids, exactly as the model's own tokenizer does it: with the ids of Hugging Face's tokenizers for the same
// files, names of special tokens in the text ("</s>") included.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/special_tokens.h"
#include "model/tokenizer/word_cache.h"

namespace roundhouse {

// Where a piece of a text begins: tokenizers put a space in front of what begins a text.
enum class PieceStart { kText, kBehindSpecial, kWithin };

// A part of a text that is tokenized by itself: the ids of a text are those of its pieces, one after another.
struct TextPiece {
  std::string_view text;
  const SpecialToken* special = nullptr;  // the piece is the name of this token
  PieceStart start = PieceStart::kText;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Without special tokens around it. Invalid UTF-8, and a special token that the model has no row for, are InputErrors.
  std::vector<std::int32_t> encode(std::string_view text) const;
  // With what the tokenizer puts around a text: bos() in front, eos() behind.
  std::vector<std::int32_t> encode_document(std::string_view text) const;
  // Appends the ids of a piece. Safe in several threads, each with a cache of its own.
  void append(const TextPiece& piece, WordCache& cache, std::vector<std::int32_t>& ids) const;

  virtual std::int32_t vocabulary() const = 0;
  // What the model's tokenizer puts in front of a text (LLaMA: <s>), or -1 for nothing (add_bos_token false).
  virtual std::int32_t bos() const = 0;
  virtual std::int32_t eos() const { return -1; }  // and behind it (add_eos_token true)
  // May a text be cut between these two characters, whatever stands around them? Then its ids are those of the two parts,
  // the second one not beginning a text.
  virtual bool may_cut(char32_t left, char32_t right) const = 0;
  // The id of a name in the vocabulary.
  virtual std::optional<std::int32_t> id_of_token(const std::string& name) const = 0;

  const SpecialTokens& special_tokens() const { return special_tokens_; }
  // Ids from `rows` on have no row in the model's embedding.
  void set_special_tokens(SpecialTokens tokens, std::int64_t rows);
  // Are tokens with a normalized name found in the normalized text? Else such are like the others.
  virtual bool has_normalized_tokens() const { return false; }
  virtual void set_normalized_tokens(std::vector<SpecialToken>) {}
  void check_row(const SpecialToken& token) const;  // throws InputError if it has none
  // What a text may lose, by the vocabulary: a line each.
  virtual std::vector<std::string> problems() const { return {}; }
  // The file that was read, and what is in it: for people.
  const std::string& source() const { return source_; }
  void set_source(std::string source) { source_ = std::move(source); }
  // What the tokenizer's files ask for and is not done: a line each, for people.
  const std::vector<std::string>& warnings() const { return warnings_; }
  void set_warnings(std::vector<std::string> warnings) { warnings_ = std::move(warnings); }

 private:
  // A part of a text without special tokens; not empty, UTF-8.
  virtual void append_part(std::string_view part, PieceStart start, WordCache& cache,
                           std::vector<std::int32_t>& ids) const = 0;

  SpecialTokens special_tokens_;
  std::int64_t rows_ = -1;  // -1: not known
  std::string source_;
  std::vector<std::string> warnings_;
};

// Cuts a text into pieces of about `bytes`, a little more where may_cut() says no, and at its special tokens.
// Precondition: text is UTF-8; it and the tokenizer outlive this. Throws InputError for a stretch of more than 16 MiB that
// cannot be cut, and for a special token that the model has no row for.
class PieceCutter {
 public:
  static constexpr std::size_t kPieceBytes = std::size_t{1} << 18;
  PieceCutter(const Tokenizer& tokenizer, std::string_view text, std::size_t bytes = kPieceBytes,
              PieceStart start = PieceStart::kText);
  std::optional<TextPiece> next();  // nothing at the end
  std::size_t position() const { return at_; }

 private:
  const Tokenizer& tokenizer_;
  std::string_view text_;
  std::size_t bytes_;
  std::size_t at_ = 0;
  PieceStart start_;
  std::optional<SpecialTokens::Found> special_;  // the next one
  std::size_t searched_ =
      0;  // no other begins before this byte: a text is touched where it is cut, not whole
};

// From DIRECTORY/tokenizer.json, else tokenizer.model (SentencePiece), else vocab.json and merges.txt, and
// tokenizer_config.json. Throws InputError naming the file; what it asks for and is not done is refused, or is among the
// tokenizer's warnings(). Of two vocabularies in a directory every token has to have the same id in both.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory);

// Hash of the files that decide how a text is cut into tokens, special tokens included: name and content of each.
std::string tokenizer_content(const std::filesystem::path& directory);

// The files that make up a tokenizer, those that exist: tokenizer.model, tokenizer.json, ...
std::vector<std::filesystem::path> tokenizer_files(const std::filesystem::path& directory);

}  // namespace roundhouse
