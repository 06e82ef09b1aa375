// Log-likelihoods of tokens: what perplexities and tasks are made of. Everything that is evaluated is a list of sequences, of some of
// whose rows the next token is scored, and goes through the model in the same walk.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "stages/evaluate/model_walk.h"
#include "stages/evaluate/scored_sequence.h"

namespace roundhouse {

// Whether it is wanted to know if each target is the likeliest token of all.
enum class Greedy { kNo, kYes };

struct LogLikelihood {
  double sum = 0;  // of ln p(target), nats; not finite if the model's output is not
  bool greedy =
      true;  // every target has the largest logit of its row (the first of equal ones); only with Greedy::kYes
};

// One thing that is evaluated. Not owned.
struct EvaluationWork {
  std::span<const ScoredSequence> sequences;
  Greedy greedy = Greedy::kNo;
  bool compared = false;  // with the reference of the walk
};

struct Comparison {
  std::vector<LogLikelihood> log_likelihoods;  // for each ScoredRows of each sequence, in order
  // If it is compared: how far the model (q) is from the reference (p) at every row of which a token is scored, in order.
  std::vector<Divergence> rows;
  bool stopped = false;  // the monitor asked a rank to: the rest is empty
};

// What a rank has done for a walk.
struct WalkFacts {
  int blocks_loaded = 0;
  std::map<int, SentBatches> sent;  // by receiver, a rank of the group
};

// All of it in one walk of the model (model_walk.h). Collective over its group: every rank has all sequences. `take` is called on every
// rank for works in order, as soon as they are whole: for those from `first` on that have become so together. The same bits on any number
// of ranks, and beside a reference as without. Throws Error for a sequence that is empty or has rows scored that it does not have.
// Nothing, if a rank was asked to stop: not all was taken.
std::optional<WalkFacts> evaluate_model(
    const ModelWalk& walk, std::span<const EvaluationWork> works,
    const std::function<void(std::size_t first, std::vector<Comparison> results)>& take);

// The same of a single work. With a `reference` it is compared.
Comparison compare_models(const CausalLM& model, const DecoderBlock& decoder,
                          const BlockSource& reference, const BlockSource& weights,
                          std::span<const ScoredSequence> sequences, Greedy greedy,
                          Backend& backend, Communicator& world, ActivationBudget& budget,
                          Monitor& monitor, WalkShape shape = {});
std::vector<LogLikelihood> measure_log_likelihoods(
    const CausalLM& model, const DecoderBlock& decoder, const BlockSource& weights,
    std::span<const ScoredSequence> sequences, Greedy greedy, Backend& backend, Communicator& world,
    ActivationBudget& budget, Monitor& monitor, WalkShape shape = {});

}  // namespace roundhouse
