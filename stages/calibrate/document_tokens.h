// The documents of a text file as tokens, without holding them all: how many there are in each document, and any of them.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "stages/calibrate/parallel_tokenizer.h"
#include "stages/calibrate/text_file.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

// Tokens [begin, begin + count) of a document, as encode_document() has them; of a conversation as encode() has them.
struct TokenSpan {
  std::size_t document = 0;
  std::size_t begin = 0;
  std::size_t count = 0;
};

// Memory: 24 bytes a document and a chunk of 64 KiB, and the ids of what was tokenized first, up to 64 MiB. What is
// asked for beyond them is tokenized once more.
class DocumentTokens {
 public:
  // With `strip`, documents lose the white space at their ends. All arguments outlive this.
  DocumentTokens(const TextFile& file, ParallelTokenizer& tokenizer, bool strip, Monitor& monitor);

  // Tokenizes those of the documents whose size is not known. Throws InputError naming the file.
  void count(std::span<const std::size_t> documents);
  // Of a document that was counted.
  std::size_t tokens(std::size_t document) const;
  bool blank(std::size_t document) const;  // without any text

  // The ids of all spans, one after another. Their documents have been counted.
  std::vector<std::int32_t> gather(std::span<const TokenSpan> spans);

 private:
  struct Document {
    std::int64_t tokens = -1;  // without what the tokenizer puts around; -1: not counted
    std::size_t first_chunk = 0;
    std::size_t chunks = 0;
  };
  struct Chunk {
    std::size_t begin = 0;  // in the document's text, bytes
    std::uint32_t tokens = 0;
    std::uint32_t kept = 0;  // where its ids are among `kept_`, plus one; 0: they are not
    PieceStart start = PieceStart::kText;
  };
  struct Use;

  // The ids that stand around each text; -1: none.
  std::int32_t first() const;
  std::int32_t last() const;
  std::string_view text_of(std::size_t document, std::string& storage) const;
  std::vector<std::string_view> texts_of(std::span<const std::size_t> documents,
                                         std::vector<std::string>& storage);
  void count_batch(std::span<const std::size_t> documents);
  void tokenize_again(std::span<const Use> uses, std::span<std::int32_t> ids);
  void show_progress(std::size_t bytes);

  const TextFile& file_;
  ParallelTokenizer& tokenizer_;
  bool strip_;
  Monitor& monitor_;
  std::vector<Document> documents_;
  std::vector<Chunk> chunks_;  // those of a document are neighbours
  std::vector<std::int32_t> kept_;
  std::size_t bytes_done_ = 0;
  std::chrono::steady_clock::time_point said_;
};

}  // namespace roundhouse
