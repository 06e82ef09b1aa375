// What is evaluated: sequences of tokens, of some of whose rows the next token is scored, and how they are cut into batches.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace roundhouse {

// Tokens that consecutive rows of a sequence should predict: targets[i] by row first_row + i, that is, by the tokens 0..first_row + i.
// A target below 0 is not scored.
struct ScoredRows {
  std::int64_t first_row = 0;
  std::vector<std::int32_t> targets;

  bool operator==(const ScoredRows&) const = default;
};

// Rows may be scored more than once: answers of one token to the same question are one sequence.
struct ScoredSequence {
  std::vector<std::int32_t> ids;
  std::vector<ScoredRows> scored;

  bool operator==(const ScoredSequence&) const = default;
};

// Sequences that go through a block together, padded at their ends to the length of the longest, which causal attention does not see:
// about 2048 tokens. Sorted by length, so that little is padded. A cut of the problem, whatever the ranks.
struct EvaluationBatch {
  std::vector<std::size_t> sequences;  // indices
  std::int64_t length = 0;

  std::int64_t rows() const { return std::ssize(sequences) * length; }
};
std::vector<EvaluationBatch> cut_batches(std::span<const ScoredSequence> sequences);
// The tokens of its rows. What is behind the end of a sequence is its last token again.
std::vector<std::int32_t> padded_ids(std::span<const ScoredSequence> sequences,
                                     const EvaluationBatch& batch);

// Rank 0's sequences, on every rank. Collective. Throws Error where they are more than 2^31 numbers.
void share_sequences(std::vector<ScoredSequence>& sequences, Communicator& world);

}  // namespace roundhouse
