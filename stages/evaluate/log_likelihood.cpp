#include "stages/evaluate/log_likelihood.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

// The head takes the rows of a window by themselves, and few rows of many sequences together, so many at most. Longer stretches are cut.
constexpr std::int64_t kWindowRows = 32;
constexpr std::int64_t kHeadRows = 512;
constexpr std::int64_t kMostHeadRows = 2048;

// What one rank finds out about one ScoredRows.
struct Score {
  double sum = 0;
  std::int64_t greedy = 1;
};

// Consecutive scored rows of a batch, within one ScoredRows.
struct Piece {
  std::int64_t row;  // of the batch
  std::span<const std::int32_t> targets;
  std::size_t score;  // among those of the batch
  std::int64_t rows() const { return std::ssize(targets); }
};

std::vector<Piece> cut_pieces(std::span<const ScoredSequence> sequences,
                              const EvaluationBatch& batch) {
  std::vector<Piece> pieces;
  std::size_t score = 0;
  std::int64_t row = 0;
  for (const std::size_t s : batch.sequences) {
    for (const ScoredRows& scored : sequences[s].scored) {
      const std::span<const std::int32_t> targets(scored.targets);
      for (std::size_t begin = 0; begin < targets.size(); begin += kMostHeadRows) {
        const std::size_t count = std::min<std::size_t>(kMostHeadRows, targets.size() - begin);
        pieces.push_back({row + scored.first_row + static_cast<std::int64_t>(begin),
                          targets.subspan(begin, count), score});
      }
      ++score;
    }
    row += batch.length;
  }
  return pieces;
}

// A model's logits for some pieces of a batch, which follow each other.
struct HeadChunk {
  std::vector<Piece> pieces;
  std::vector<std::int32_t> targets;
};

std::vector<HeadChunk> cut_chunks(std::span<const ScoredSequence> sequences,
                                  const EvaluationBatch& batch) {
  std::vector<HeadChunk> chunks;
  for (const Piece& piece : cut_pieces(sequences, batch)) {
    const bool fits = !chunks.empty() && piece.rows() < kWindowRows &&
                      chunks.back().pieces.front().rows() < kWindowRows &&
                      std::ssize(chunks.back().targets) + piece.rows() <= kHeadRows;
    if (!fits) chunks.emplace_back();
    chunks.back().pieces.push_back(piece);
    chunks.back().targets.insert(chunks.back().targets.end(), piece.targets.begin(),
                                 piece.targets.end());
  }
  return chunks;
}

Tensor logits_of(const HeadChunk& chunk, const CausalLM& model, const CausalLM::Head& head,
                 const Tensor& residual, Backend& backend) {
  Tensor gathered(backend, residual.type(), std::ssize(chunk.targets), residual.cols());
  std::int64_t at = 0;
  for (const Piece& piece : chunk.pieces) {
    backend.copy(residual.view().row_range(piece.row, piece.row + piece.rows()),
                 gathered.view().row_range(at, at + piece.rows()));
    at += piece.rows();
  }
  return model.logits(head, std::as_const(gathered).view(), backend);
}

void add_scores(const HeadChunk& chunk, const Tensor& logits, Greedy greedy, Backend& backend,
                std::span<Score> scores) {
  std::vector<float> loss(chunk.targets.size());
  std::vector<std::int32_t> largest(greedy == Greedy::kYes ? chunk.targets.size() : 0);
  backend.cross_entropy(
      {.logits = logits.view(), .target = chunk.targets, .loss = loss, .largest = largest});
  std::size_t row = 0;
  for (const Piece& piece : chunk.pieces) {
    Score& score = scores[piece.score];
    for (const std::int32_t target : piece.targets) {
      score.sum -= static_cast<double>(loss[row]);
      if (!largest.empty() && target >= 0 && largest[row] != target) score.greedy = 0;
      ++row;
    }
  }
}

// Appends how far the second model's distributions are from the first one's, at the rows of which a token is scored.
void add_divergences(const HeadChunk& chunk, const Tensor& reference, const Tensor& logits,
                     Backend& backend, std::vector<Divergence>& divergences) {
  std::vector<Divergence> of_rows(chunk.targets.size());
  backend.compare_logits(
      {.reference = reference.view(), .logits = logits.view(), .divergences = of_rows});
  for (std::size_t row = 0; row < of_rows.size(); ++row)
    if (chunk.targets[row] >= 0) divergences.push_back(of_rows[row]);
}

void check_rows(std::span<const ScoredSequence> sequences) {
  for (const ScoredSequence& sequence : sequences) {
    require(!sequence.ids.empty(), "a sequence without a token is scored");
    for (const ScoredRows& scored : sequence.scored) {
      require(scored.first_row >= 0 &&
                  scored.first_row + std::ssize(scored.targets) <= std::ssize(sequence.ids),
              "rows are scored that a sequence does not have");
    }
  }
}

std::size_t scores_of(const ScoredSequence& sequence) { return sequence.scored.size(); }

std::size_t divergences_of(const ScoredSequence& sequence) {
  std::size_t rows = 0;
  for (const ScoredRows& scored : sequence.scored)
    rows += static_cast<std::size_t>(
        std::ranges::count_if(scored.targets, [](std::int32_t target) { return target >= 0; }));
  return rows;
}

// What all ranks have found, rank by rank.
template <class T>
std::vector<std::vector<T>> gathered(const std::vector<T>& mine, Communicator& group) {
  std::vector<std::vector<T>> all;
  for (const auto& bytes : group.all_gather(std::as_bytes(std::span(mine)))) {
    std::vector<T>& of_rank = all.emplace_back(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(of_rank.data(), bytes.data(), bytes.size());
  }
  return all;
}

// The results of one work in the order of its sequences, each of which has so many: they come batch by batch.
template <class T>
class InOrder {
 public:
  InOrder(std::span<const ScoredSequence> sequences,
          std::size_t (*count)(const ScoredSequence& sequence)) {
    for (const ScoredSequence& sequence : sequences)
      first_.push_back(first_.back() + count(sequence));
    results_.resize(first_.back());
  }
  // From the results of a rank, of which those before `at` were put before.
  void put(const EvaluationBatch& batch, const std::vector<T>& of_rank, std::size_t& at) {
    for (const std::size_t s : batch.sequences) {
      const std::size_t count = first_[s + 1] - first_[s];
      require(at + count <= of_rank.size(), "the ranks have not evaluated every row once");
      std::copy_n(&of_rank[at], count, &results_[first_[s]]);
      at += count;
    }
  }
  std::vector<T> take() { return std::move(results_); }

 private:
  std::vector<std::size_t> first_{0};
  std::vector<T> results_;
};

struct WorkResults {
  InOrder<Score> scores;
  InOrder<Divergence> divergences;
  int batches_left = 0;
};

Comparison comparison_of(WorkResults& results) {
  Comparison comparison;
  for (const Score& score : results.scores.take())
    comparison.log_likelihoods.push_back({.sum = score.sum, .greedy = score.greedy != 0});
  comparison.rows = results.divergences.take();
  return comparison;
}

}  // namespace

std::optional<WalkFacts> evaluate_model(
    const ModelWalk& walk, std::span<const EvaluationWork> works,
    const std::function<void(std::size_t first, std::vector<Comparison> results)>& take) {
  std::vector<WalkBatch> batches;
  std::vector<WorkResults> results;
  for (std::size_t w = 0; w < works.size(); ++w) {
    const EvaluationWork& work = works[w];
    check_rows(work.sequences);
    const bool compared = work.compared && walk.reference;
    for (EvaluationBatch& batch : cut_batches(work.sequences))
      batches.push_back({work.sequences, std::move(batch), compared, static_cast<int>(w)});
    results.push_back(
        {.scores = {work.sequences, scores_of},
         .divergences = {compared ? work.sequences : std::span<const ScoredSequence>(),
                         divergences_of}});
  }
  for (const WalkBatch& batch : batches) ++results[batch.work].batches_left;

  std::size_t taken = 0;
  const auto take_whole = [&] {
    const std::size_t first = taken;
    std::vector<Comparison> whole;
    for (; taken < works.size() && results[taken].batches_left == 0; ++taken)
      whole.push_back(comparison_of(results[taken]));
    if (!whole.empty()) take(first, std::move(whole));
  };
  WalkOfRank rank(walk, batches);
  for (const PartRange portion : rank.portions()) {
    std::vector<Score> scores;  // of this rank's batches, in their order
    std::vector<Divergence> divergences;
    const bool whole = rank.run(portion, [&](int index,
                                             std::span<const WalkOfRank::AtHead> models) {
      const auto& [sequences, batch, compared, work] = batches[index];
      const std::size_t before = scores.size();
      for (const std::size_t s : batch.sequences)
        scores.resize(scores.size() + sequences[s].scored.size());
      for (const HeadChunk& chunk : cut_chunks(sequences, batch)) {
        const auto logits_of_model = [&](const WalkOfRank::AtHead& at) {
          return logits_of(chunk, walk.model, at.head, at.residual, walk.backend);
        };
        const Tensor logits = logits_of_model(models.back());
        add_scores(chunk, logits, works[work].greedy, walk.backend,
                   std::span(scores).subspan(before));
        if (!compared) continue;
        add_divergences(chunk, logits_of_model(models.front()), logits, walk.backend, divergences);
      }
    });
    if (walk.group.all_reduce_max(whole ? 0 : 1) != 0) return std::nullopt;
    const auto all_scores = gathered(scores, walk.group);
    const auto all_divergences = gathered(divergences, walk.group);
    for (int r = 0; r < walk.group.size(); ++r) {
      std::size_t score = 0, divergence = 0;
      for (const int index : rank.visited_by(r, portion)) {
        WorkResults& of_work = results[batches[index].work];
        of_work.scores.put(batches[index].batch, all_scores[r], score);
        if (batches[index].compared)
          of_work.divergences.put(batches[index].batch, all_divergences[r], divergence);
        --of_work.batches_left;
      }
    }
    take_whole();
  }
  take_whole();  // works without a sequence
  return WalkFacts{.blocks_loaded = rank.blocks_loaded(), .sent = rank.sent()};
}

Comparison compare_models(const CausalLM& model, const DecoderBlock& decoder,
                          const BlockSource& reference, const BlockSource& weights,
                          std::span<const ScoredSequence> sequences, Greedy greedy,
                          Backend& backend, Communicator& world, ActivationBudget& budget,
                          Monitor& monitor, WalkShape shape) {
  const EvaluationWork work{.sequences = sequences, .greedy = greedy, .compared = true};
  Comparison comparison;
  const auto facts = evaluate_model(
      {model, decoder, reference, weights, backend, world, budget, monitor, shape}, {&work, 1},
      [&](std::size_t, std::vector<Comparison> results) { comparison = std::move(results[0]); });
  comparison.stopped = !facts;
  return comparison;
}

std::vector<LogLikelihood> measure_log_likelihoods(
    const CausalLM& model, const DecoderBlock& decoder, const BlockSource& weights,
    std::span<const ScoredSequence> sequences, Greedy greedy, Backend& backend, Communicator& world,
    ActivationBudget& budget, Monitor& monitor, WalkShape shape) {
  return compare_models(model, decoder, {}, weights, sequences, greedy, backend, world, budget,
                        monitor, shape)
      .log_likelihoods;
}

}  // namespace roundhouse
