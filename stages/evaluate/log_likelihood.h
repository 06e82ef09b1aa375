// Log-likelihoods of tokens: what perplexities and tasks are made of. Everything that is evaluated is a list of sequences, of some of
// whose rows the next token is scored, and goes through the model by the same walk.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "stages/flow/activations.h"
#include "stages/flow/monitor.h"

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

// Whether it is wanted to know if each target is the likeliest token of all: logits are read by the host for it.
enum class Greedy { kNo, kYes };

struct LogLikelihood {
  double sum = 0;  // of ln p(target), nats; not finite if the model's output is not
  bool greedy =
      true;  // every target has the largest logit of its row (the first of equal ones); only with Greedy::kYes
};

// Weights of block b, loaded when they are needed: original or dequantized.
using BlockSource = std::function<BlockWeights(int block)>;

// Sequences that go through a block together, padded at their ends to the length of the longest, which causal attention does not see:
// about 2048 tokens. Sorted by length, so that little is padded. A cut of the problem, whatever the ranks.
struct EvaluationBatch {
  std::vector<std::size_t> sequences;  // indices
  std::int64_t length = 0;
};
std::vector<EvaluationBatch> cut_batches(std::span<const ScoredSequence> sequences);

// For each ScoredRows of each sequence, in order. Collective over `world`: every rank has all sequences; ranks share the batches,
// and each runs its own through all blocks, one block in memory at a time. The same bits on any number of ranks.
// Throws Error for a sequence that is empty or has rows scored that it does not have. Empty if it was asked to stop.
std::vector<LogLikelihood> measure_log_likelihoods(
    const CausalLM& model, const DecoderBlock& decoder, const BlockSource& weights,
    std::span<const ScoredSequence> sequences, Greedy greedy, Backend& backend, Communicator& world,
    ActivationBudget& budget, Monitor& monitor);

// How far a model's distribution over the next token, q, is from the original's, p.
struct Divergence {
  double nats = 0;            // sum p ln(p / q)
  std::int64_t same_top = 0;  // 1: both have the same likeliest token (the first of equal ones)
};
// Of logits [vocabulary].
Divergence divergence(std::span<const float> reference, std::span<const float> logits);

// Two models of one shape side by side, block by block: what measure_log_likelihoods() says of the second, with the same bits, and
// how far it is from the first at every row of which a token is scored, in order. No `reference`: no such rows.
struct Comparison {
  std::vector<LogLikelihood> log_likelihoods;
  std::vector<Divergence> rows;
  bool stopped = false;  // the monitor asked a rank to: the rest is empty
};
Comparison compare_models(const CausalLM& model, const DecoderBlock& decoder,
                          const BlockSource& reference, const BlockSource& weights,
                          std::span<const ScoredSequence> sequences, Greedy greedy,
                          Backend& backend, Communicator& world, ActivationBudget& budget,
                          Monitor& monitor);

// Rank 0's sequences, on every rank. Collective. Throws Error where they are more than 2^31 numbers.
void share_sequences(std::vector<ScoredSequence>& sequences, Communicator& world);

}  // namespace roundhouse
