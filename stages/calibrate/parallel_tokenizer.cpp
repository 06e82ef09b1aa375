#include "stages/calibrate/parallel_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {

std::optional<TextChunk> ChunkCutter::next() {
  const std::size_t begin = pieces_.position();
  auto piece = pieces_.next();
  if (!piece) return std::nullopt;
  const PieceStart start = piece->start;
  // Where special tokens cut a text into small pieces, many are a chunk.
  while (pieces_.position() - begin < kChunkBytes && pieces_.next()) {
  }
  return TextChunk{text_.substr(begin, pieces_.position() - begin), start};
}

std::vector<std::vector<std::int32_t>> ParallelTokenizer::encode(
    std::span<const TextChunk> chunks) {
  std::vector<std::vector<std::int32_t>> ids(chunks.size());
  threads_.run(static_cast<std::int64_t>(chunks.size()), [&](std::int64_t i, int thread) {
    const auto at = static_cast<std::size_t>(i);
    PieceCutter pieces(tokenizer_, chunks[at].text, PieceCutter::kPieceBytes, chunks[at].start);
    while (const auto piece = pieces.next()) tokenizer_.append(*piece, caches_[thread], ids[at]);
  });
  return ids;
}

std::vector<std::int32_t> ParallelTokenizer::encode_document(std::string_view text,
                                                             std::size_t most,
                                                             const std::function<void()>& tick) {
  if (!is_utf8(text)) throw InputError("is not UTF-8");
  std::vector<std::int32_t> ids;
  if (tokenizer_.bos() >= 0) ids.push_back(tokenizer_.bos());
  ChunkCutter cutter(tokenizer_, text);
  bool more = true;
  while (more && (most == 0 || ids.size() < most)) {
    std::vector<TextChunk> chunks;
    while (chunks.size() < batch()) {
      const auto chunk = cutter.next();
      more = chunk.has_value();
      if (!more) break;
      chunks.push_back(*chunk);
    }
    for (const auto& part : encode(chunks)) ids.insert(ids.end(), part.begin(), part.end());
    tick();
  }
  if (!more && tokenizer_.eos() >= 0) ids.push_back(tokenizer_.eos());
  if (most != 0) ids.resize(std::min(ids.size(), most));
  return ids;
}

}  // namespace roundhouse
