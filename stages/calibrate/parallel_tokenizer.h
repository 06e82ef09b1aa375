// Texts tokenized by all threads, in chunks: the same ids as a text tokenized whole.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "model/tokenizer/tokenizer.h"

namespace roundhouse {

// A part of a text that is tokenized by itself.
struct TextChunk {
  std::string_view text;
  PieceStart start;
};

// Cuts a text into chunks of about 64 KiB. Precondition: it is UTF-8.
class ChunkCutter {
 public:
  ChunkCutter(const Tokenizer& tokenizer, std::string_view text)
      : text_(text), pieces_(tokenizer, text, kChunkBytes) {}
  std::optional<TextChunk> next();

 private:
  static constexpr std::size_t kChunkBytes = std::size_t{1} << 16;
  std::string_view text_;
  PieceCutter pieces_;
};

class ParallelTokenizer {
 public:
  ParallelTokenizer(const Tokenizer& tokenizer, ThreadPool& threads)
      : tokenizer_(tokenizer),
        threads_(threads),
        caches_(static_cast<std::size_t>(threads.size())) {}

  const Tokenizer& tokenizer() const { return tokenizer_; }
  ThreadPool& threads() { return threads_; }
  // Chunks that are worth handing out at once.
  std::size_t batch() const { return caches_.size() * 16; }
  // The ids of each.
  std::vector<std::vector<std::int32_t>> encode(std::span<const TextChunk> chunks);
  // Ids of a text with what the tokenizer puts around it, or its first `most` (0: all). Throws InputError: not UTF-8.
  std::vector<std::int32_t> encode_document(std::string_view text, std::size_t most,
                                            const std::function<void()>& tick);

 private:
  const Tokenizer& tokenizer_;
  ThreadPool& threads_;
  std::vector<WordCache> caches_;  // one a thread
};

}  // namespace roundhouse
