#include "stages/calibrate/document_tokens.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxKept = std::size_t{1} << 24;     // ids
constexpr std::size_t kBatchBytes = std::size_t{1} << 24;  // of text that is held at a time
constexpr auto kBetweenLines = std::chrono::seconds(20);

std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
  text.remove_suffix(text.size() - (text.find_last_not_of(kSpace) + 1));
  return text;
}

}  // namespace

// Tokens [begin, end) of a chunk, and where they go.
struct DocumentTokens::Use {
  std::size_t document, chunk;
  std::size_t begin, end;
  std::size_t to;
};

DocumentTokens::DocumentTokens(const TextFile& file, ParallelTokenizer& tokenizer, bool strip,
                               Monitor& monitor)
    : file_(file),
      tokenizer_(tokenizer),
      strip_(strip),
      monitor_(monitor),
      documents_(file.documents()),
      said_(std::chrono::steady_clock::now()) {}

std::int32_t DocumentTokens::first() const {
  return file_.conversations() ? -1 : tokenizer_.tokenizer().bos();
}

std::int32_t DocumentTokens::last() const {
  return file_.conversations() ? -1 : tokenizer_.tokenizer().eos();
}

std::string_view DocumentTokens::text_of(std::size_t document, std::string& storage) const {
  const std::string_view text = file_.document(document, storage);
  return strip_ ? stripped(text) : text;
}

std::vector<std::string_view> DocumentTokens::texts_of(std::span<const std::size_t> documents,
                                                       std::vector<std::string>& storage) {
  storage.resize(documents.size());
  std::vector<std::string_view> texts(documents.size());
  tokenizer_.threads().run(static_cast<std::int64_t>(documents.size()), [&](std::int64_t i, int) {
    const auto at = static_cast<std::size_t>(i);
    texts[at] = text_of(documents[at], storage[at]);
  });
  return texts;
}

void DocumentTokens::show_progress(std::size_t bytes) {
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  bytes_done_ += bytes;
  const std::string what = fmt::format("calibration: {} MiB of text tokenized", bytes_done_ / kMiB);
  monitor_.phase(what);
  monitor_.tick();
  const auto now = std::chrono::steady_clock::now();
  if (now - said_ < kBetweenLines) return;
  said_ = now;
  monitor_.say(what);
}

void DocumentTokens::count(std::span<const std::size_t> documents) {
  std::vector<std::size_t> batch;
  std::size_t bytes = 0;
  const auto flush = [&] {
    try {
      count_batch(batch);
    } catch (const InputError& error) {
      throw InputError(file_.path().string() + ": " + error.what());
    }
    file_.release_pages();
    batch.clear();
    bytes = 0;
  };
  for (const std::size_t document : documents) {
    if (documents_[document].tokens >= 0) continue;
    batch.push_back(document);
    bytes += file_.bytes_of(document);
    if (bytes >= kBatchBytes) flush();
  }
  if (!batch.empty()) flush();
}

void DocumentTokens::count_batch(std::span<const std::size_t> documents) {
  std::vector<std::string> storage;
  const std::vector<std::string_view> texts = texts_of(documents, storage);
  std::vector<TextChunk> waiting;
  std::vector<std::size_t> owners;  // whose they are
  std::size_t bytes = 0;
  const auto flush = [&] {
    const auto ids = tokenizer_.encode(waiting);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::size_t owner = owners[i];
      Document& document = documents_[documents[owner]];
      Chunk chunk{.begin = static_cast<std::size_t>(waiting[i].text.data() - texts[owner].data()),
                  .tokens = static_cast<std::uint32_t>(ids[i].size()),
                  .start = waiting[i].start};
      if (kept_.size() + ids[i].size() <= kMaxKept) {
        chunk.kept = static_cast<std::uint32_t>(kept_.size() + 1);
        kept_.insert(kept_.end(), ids[i].begin(), ids[i].end());
      }
      if (document.chunks++ == 0) document.first_chunk = chunks_.size();
      document.tokens += static_cast<std::int64_t>(ids[i].size());
      chunks_.push_back(chunk);
    }
    waiting.clear();
    owners.clear();
    if (!file_.json_lines()) file_.release_pages();
    show_progress(bytes);
    bytes = 0;
  };
  for (std::size_t i = 0; i < documents.size(); ++i) {
    documents_[documents[i]].tokens = 0;
    ChunkCutter cutter(tokenizer_.tokenizer(), texts[i]);
    while (const auto chunk = cutter.next()) {
      waiting.push_back(*chunk);
      owners.push_back(i);
      bytes += chunk->text.size();
      if (bytes >= tokenizer_.batch() << 16 || waiting.size() >= kBatchBytes / 256) flush();
    }
  }
  flush();
}

std::size_t DocumentTokens::tokens(std::size_t document) const {
  require(documents_[document].tokens >= 0, "document tokens: not counted");
  return static_cast<std::size_t>(documents_[document].tokens) + (first() >= 0 ? 1 : 0) +
         (last() >= 0 ? 1 : 0);
}

bool DocumentTokens::blank(std::size_t document) const { return documents_[document].chunks == 0; }

std::vector<std::int32_t> DocumentTokens::gather(std::span<const TokenSpan> spans) {
  std::size_t total = 0;
  for (const TokenSpan& span : spans) total += span.count;
  std::vector<std::int32_t> ids(total);
  std::vector<Use> uses;
  std::size_t to = 0;
  for (const TokenSpan& span : spans) {
    require(span.begin + span.count <= tokens(span.document), "document tokens: range");
    const Document& document = documents_[span.document];
    const std::size_t span_end = span.begin + span.count;
    std::size_t at = 0;  // in the document's tokens
    if (first() >= 0) {
      if (span.begin == 0 && span.count > 0) ids[to] = first();
      at = 1;
    }
    for (std::size_t i = 0; i < document.chunks && at < span_end; ++i) {
      const Chunk& chunk = chunks_[document.first_chunk + i];
      const std::size_t begin = std::max(at, span.begin),
                        end = std::min(at + chunk.tokens, span_end);
      if (begin < end) {
        const Use use{span.document, document.first_chunk + i, begin - at, end - at,
                      to + begin - span.begin};
        if (chunk.kept > 0) {
          std::copy_n(kept_.begin() + static_cast<std::ptrdiff_t>(chunk.kept - 1 + use.begin),
                      use.end - use.begin, ids.begin() + static_cast<std::ptrdiff_t>(use.to));
        } else {
          uses.push_back(use);
        }
      }
      at += chunk.tokens;
    }
    if (at < span_end) ids[to + at - span.begin] = last();
    to += span.count;
  }
  std::ranges::stable_sort(uses, {}, &Use::chunk);
  tokenize_again(uses, ids);
  return ids;
}

void DocumentTokens::tokenize_again(std::span<const Use> uses, std::span<std::int32_t> ids) {
  for (std::size_t done = 0; done < uses.size();) {
    // A batch: some chunks, each once, and the documents that they are in.
    std::vector<std::size_t> documents;
    std::vector<std::size_t> first_use;
    std::size_t bytes = 0, end = done;
    for (; end < uses.size() && bytes < kBatchBytes && first_use.size() < tokenizer_.batch();
         ++end) {
      if (end > done && uses[end].chunk == uses[end - 1].chunk) continue;
      first_use.push_back(end);
      if (documents.empty() || documents.back() != uses[end].document) {
        documents.push_back(uses[end].document);
        bytes += file_.bytes_of(uses[end].document);
        if (!file_.json_lines()) bytes = 0;  // nothing is held
      }
    }
    while (end < uses.size() && uses[end].chunk == uses[end - 1].chunk) ++end;

    std::vector<std::string> storage;
    const std::vector<std::string_view> texts = texts_of(documents, storage);
    std::vector<TextChunk> chunks;
    std::size_t text = 0;
    for (const std::size_t use : first_use) {
      while (documents[text] != uses[use].document) ++text;
      const Document& document = documents_[uses[use].document];
      const std::size_t index = uses[use].chunk;
      const std::size_t begin = chunks_[index].begin;
      const bool last = index + 1 == document.first_chunk + document.chunks;
      const std::size_t stop = last ? texts[text].size() : chunks_[index + 1].begin;
      chunks.push_back({texts[text].substr(begin, stop - begin), chunks_[index].start});
    }
    const auto encoded = tokenizer_.encode(chunks);
    std::size_t chunk = 0;
    for (; done < end; ++done) {
      const Use& use = uses[done];
      while (uses[first_use[chunk]].chunk != use.chunk) ++chunk;
      const auto& from = encoded[chunk];
      if (from.size() < use.end)
        throw InputError(file_.path().string() + ": has changed while it was read");
      std::copy(from.begin() + static_cast<std::ptrdiff_t>(use.begin),
                from.begin() + static_cast<std::ptrdiff_t>(use.end),
                ids.begin() + static_cast<std::ptrdiff_t>(use.to));
    }
    file_.release_pages();
    monitor_.tick();
  }
}

}  // namespace roundhouse
