// From the strings of a task to tokens.
#include <algorithm>
#include <map>

#include <fmt/format.h>

#include "base/error.h"
#include "model/template/white_space.h"
#include "stages/evaluate/tasks.h"

namespace roundhouse {

RequestEncoder::RequestEncoder(const Tokenizer& tokenizer, const ModelConfig& model,
                               Protocol protocol)
    : tokenizer_(tokenizer), protocol_(protocol), max_length_(model.max_positions) {
  const std::int32_t eos = model.eos.empty() ? -1 : model.eos.front();
  prefix_ = protocol == Protocol::kPaper || model.bos < 0 ? eos : model.bos;
}

std::vector<std::int32_t> RequestEncoder::tokens_of(const std::string& text) const {
  if (protocol_ == Protocol::kPaper) return tokenizer_.encode(text);
  std::vector<std::int32_t> ids = tokenizer_.encode_document(text);
  // A text that begins with the token's name gets no second one.
  if (ids.size() > 1 && ids[0] == prefix_ && ids[1] == prefix_) ids.erase(ids.begin());
  return ids;
}

TokenPair RequestEncoder::encode(const TextRequest& request) const {
  TokenPair pair;
  if (request.context.empty()) {
    pair.continuation = tokenizer_.encode(request.continuation);
    if (prefix_ < 0)
      throw InputError("the context is empty, and the model names no token to begin with");
    pair.context = {prefix_};
    if (protocol_ == Protocol::kLmEval && !pair.continuation.empty() &&
        pair.continuation.front() == prefix_)
      pair.continuation.erase(pair.continuation.begin());
  } else {
    const std::string context(strip_end(request.context));
    pair.context = tokens_of(context);
    pair.continuation = tokens_of(request.context + request.continuation);
    const std::size_t cut = std::min(pair.context.size(), pair.continuation.size());
    pair.continuation.erase(pair.continuation.begin(),
                            pair.continuation.begin() + static_cast<std::ptrdiff_t>(cut));
  }
  if (pair.continuation.empty())
    throw InputError("its tokens leave nothing of an answer to be scored");
  if (std::ssize(pair.continuation) > max_length_) {
    throw InputError(fmt::format("an answer has {} tokens, but the model has only {} positions",
                                 pair.continuation.size(), max_length_));
  }
  return pair;
}

ScoredSequence RequestEncoder::sequence_of(const TokenPair& pair) const {
  ScoredSequence sequence{.ids = pair.context, .scored = {}};
  sequence.ids.insert(sequence.ids.end(), pair.continuation.begin(), pair.continuation.end());
  sequence.ids.pop_back();  // predicts what is not asked
  if (std::ssize(sequence.ids) > max_length_)
    sequence.ids.erase(sequence.ids.begin(), sequence.ids.end() - max_length_);
  sequence.scored.push_back(
      {std::ssize(sequence.ids) - std::ssize(pair.continuation), pair.continuation});
  // Without a context (its tokens were none) the first token of the answer is predicted by nothing.
  if (sequence.scored[0].first_row < 0) throw InputError("its context has no token");
  return sequence;
}

// Windows of the most tokens that the model reads, in which each token is predicted once; all but the last begin with the
// token before.
void RequestEncoder::append_page(const TaskDocument& document,
                                 std::vector<ScoredSequence>& sequences) const {
  const std::vector<std::int32_t> tokens = tokens_of(document.page);
  if (prefix_ < 0) throw InputError("the model names no token for a text to begin with");
  const auto size = std::ssize(tokens);
  const std::span<const std::int32_t> all(tokens);
  for (std::int64_t done = 0; done < size;) {
    const std::int64_t count = std::min(max_length_, size - done);
    // What the window reads before the first token that it predicts: as much as fits, or the one token.
    const std::int64_t end = done + count;
    std::int64_t begin = done == 0 ? 0 : std::max<std::int64_t>(0, end - max_length_ - 1);
    TokenPair pair;
    if (done == 0) pair.context = {prefix_};
    for (; begin < done; ++begin) pair.context.push_back(all[begin]);
    const auto predicted =
        all.subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
    pair.continuation = {predicted.begin(), predicted.end()};
    sequences.push_back(sequence_of(pair));
    done = end;
  }
}

TaskSequences RequestEncoder::encode(std::span<const TaskDocument> documents,
                                     const std::function<void()>& tick) const {
  TaskSequences encoded;
  std::vector<std::pair<std::size_t, std::size_t>> asked;  // sequence, which of its scored rows
  std::vector<std::vector<std::size_t>> of_document;       // indices into `asked`
  for (const TaskDocument& document : documents) {
    const std::size_t before = encoded.sequences.size();
    std::vector<std::size_t>& own = of_document.emplace_back();
    try {
      if (document.requests.empty()) append_page(document, encoded.sequences);
      for (std::size_t s = before; s < encoded.sequences.size(); ++s) {
        own.push_back(asked.size());
        asked.emplace_back(s, 0);
      }
      bool cut = false;
      for (const TextRequest& request : document.requests) {
        const TokenPair pair = encode(request);
        cut = cut || std::ssize(pair.context) + std::ssize(pair.continuation) - 1 > max_length_;
        ScoredSequence sequence = sequence_of(pair);
        // Answers that are one token ask the same of the model.
        auto same = encoded.sequences.begin() + static_cast<std::ptrdiff_t>(before);
        while (same != encoded.sequences.end() && same->ids != sequence.ids) ++same;
        own.push_back(asked.size());
        if (same == encoded.sequences.end()) {
          asked.emplace_back(encoded.sequences.size(), 0);
          encoded.sequences.push_back(std::move(sequence));
        } else {
          asked.emplace_back(same - encoded.sequences.begin(), same->scored.size());
          same->scored.push_back(std::move(sequence.scored[0]));
        }
      }
      if (cut) ++encoded.cut;
    } catch (const InputError& error) {
      throw InputError(document.where + ": " + error.what());
    }
    tick();
  }
  std::vector<std::size_t> first;  // result of each sequence
  std::size_t count = 0;
  for (const ScoredSequence& sequence : encoded.sequences) {
    first.push_back(count);
    count += sequence.scored.size();
  }
  for (const std::vector<std::size_t>& own : of_document) {
    std::vector<std::size_t>& results = encoded.results.emplace_back();
    for (const std::size_t i : own) results.push_back(first[asked[i].first] + asked[i].second);
  }
  return encoded;
}

}  // namespace roundhouse
