#include "stages/evaluate/log_likelihood.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "comm/tree_sum.h"
#include "stages/calibrate/samples.h"

namespace roundhouse {
namespace {

// The head takes rows of about this many together; more than the second number only where it has to.
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

std::vector<std::int32_t> padded_ids(std::span<const ScoredSequence> sequences,
                                     const EvaluationBatch& batch) {
  std::vector<std::int32_t> ids;
  for (const std::size_t s : batch.sequences) {
    const std::vector<std::int32_t>& own = sequences[s].ids;
    ids.insert(ids.end(), own.begin(), own.end());
    ids.insert(ids.end(), static_cast<std::size_t>(batch.length) - own.size(), own.back());
  }
  return ids;
}

// Whether each target is the first of the largest logits of its row.
bool is_greedy(ConstMatrix logits, std::span<const std::int32_t> targets, Backend& backend) {
  std::vector<float> row(static_cast<std::size_t>(logits.cols));
  for (std::size_t r = 0; r < targets.size(); ++r) {
    if (targets[r] < 0) continue;
    const auto at = static_cast<std::int64_t>(r);
    backend.download(logits.row_range(at, at + 1).data, std::as_writable_bytes(std::span(row)));
    if (std::ranges::max_element(row) - row.begin() != targets[r]) return false;
  }
  return true;
}

// The scores of a batch, whose last residual is given.
std::vector<Score> score_batch(const CausalLM& model, const CausalLM::Head& head,
                               std::span<const ScoredSequence> sequences,
                               const EvaluationBatch& batch, ConstMatrix residual, Greedy greedy,
                               Backend& backend) {
  std::size_t count = 0;
  for (const std::size_t s : batch.sequences) count += sequences[s].scored.size();
  std::vector<Score> scores(count);
  const std::vector<Piece> pieces = cut_pieces(sequences, batch);
  for (std::size_t begin = 0, end = 0; begin < pieces.size(); begin = end) {
    std::int64_t rows = 0;
    do {
      rows += pieces[end++].rows();
    } while (end < pieces.size() && rows + pieces[end].rows() <= kHeadRows);
    Tensor gathered(backend, residual.type, rows, residual.cols);
    std::vector<std::int32_t> targets;
    for (std::size_t p = begin; p < end; ++p) {
      const auto at = std::ssize(targets);
      backend.copy(residual.row_range(pieces[p].row, pieces[p].row + pieces[p].rows()),
                   gathered.view().row_range(at, at + pieces[p].rows()));
      targets.insert(targets.end(), pieces[p].targets.begin(), pieces[p].targets.end());
    }
    const Tensor logits = model.logits(head, std::as_const(gathered).view(), backend);
    std::vector<float> loss(targets.size());
    backend.cross_entropy({.logits = logits.view(), .target = targets, .loss = loss});
    std::int64_t row = 0;
    for (std::size_t p = begin; p < end; ++p) {
      Score& score = scores[pieces[p].score];
      const std::int64_t stop = row + pieces[p].rows();
      if (greedy == Greedy::kYes && score.greedy != 0) {
        score.greedy =
            is_greedy(logits.view().row_range(row, stop), pieces[p].targets, backend) ? 1 : 0;
      }
      for (; row < stop; ++row)
        score.sum -= static_cast<double>(loss[static_cast<std::size_t>(row)]);
    }
  }
  return scores;
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

}  // namespace

std::vector<EvaluationBatch> cut_batches(std::span<const ScoredSequence> sequences) {
  std::vector<std::size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [&](std::size_t s) { return sequences[s].ids.size(); });
  std::vector<EvaluationBatch> batches;
  std::int64_t most = 0;
  for (const std::size_t s : order) {
    if (batches.empty() || std::ssize(batches.back().sequences) == most) {
      const std::int64_t length = std::ssize(sequences[s].ids);
      batches.push_back({.sequences = {}, .length = length});
      most = micro_batch_sequences(length);
    }
    batches.back().sequences.push_back(s);
  }
  return batches;
}

std::vector<LogLikelihood> measure_log_likelihoods(const CausalLM& model, const DecoderBlock& shape,
                                                   const BlockSource& weights,
                                                   std::span<const ScoredSequence> sequences,
                                                   Greedy greedy, Backend& backend,
                                                   Communicator& world, ActivationBudget& budget,
                                                   Monitor& monitor) {
  check_rows(sequences);
  const std::vector<EvaluationBatch> batches = cut_batches(sequences);
  const PartRange mine =
      parts_of_rank(static_cast<int>(batches.size()), world.rank(), world.size());
  Activations residual(budget, backend.activation_type(), shape.hidden_size());
  const auto rows_of = [](const EvaluationBatch& batch) {
    return std::ssize(batch.sequences) * batch.length;
  };

  for (int i = mine.begin; i < mine.end; ++i) {
    const EvaluationBatch& batch = batches[static_cast<std::size_t>(i)];
    const Tensor embedded = model.embed(padded_ids(sequences, batch), batch.length, backend);
    residual.reserve(i, embedded.rows());
    residual.store(i, 0, embedded.view(), backend);
  }
  for (int block = 0; block < model.config().blocks; ++block) {
    if (mine.begin == mine.end) break;
    monitor.tick();
    const BlockWeights block_weights = weights(block);
    for (int i = mine.begin; i < mine.end; ++i) {
      const EvaluationBatch& batch = batches[static_cast<std::size_t>(i)];
      BlockState state;
      state.residual = residual.load(i, 0, rows_of(batch), backend);
      state.sequences = std::ssize(batch.sequences);
      state.length = batch.length;
      shape.forward(block_weights, state, backend);
      residual.store(i, 0, state.residual.view(), backend);
      monitor.tick();
    }
  }

  std::vector<Score> scores;  // of this rank's batches, in their order
  if (mine.begin < mine.end) {
    const CausalLM::Head head = model.load_head(backend);
    for (int i = mine.begin; i < mine.end; ++i) {
      const EvaluationBatch& batch = batches[static_cast<std::size_t>(i)];
      const Tensor last = residual.load(i, 0, rows_of(batch), backend);
      const std::vector<Score> own =
          score_batch(model, head, sequences, batch, last.view(), greedy, backend);
      scores.insert(scores.end(), own.begin(), own.end());
      residual.release(i);
      monitor.tick();
    }
  }

  // The order of ranks is that of the batches, whoever held what.
  std::vector<Score> all;
  for (const auto& part : world.all_gather(std::as_bytes(std::span(scores)))) {
    const std::size_t before = all.size();
    all.resize(before + part.size() / sizeof(Score));
    if (!part.empty()) std::memcpy(&all[before], part.data(), part.size());
  }
  std::vector<std::size_t> first(sequences.size() + 1, 0);  // result of each sequence
  for (std::size_t s = 0; s < sequences.size(); ++s)
    first[s + 1] = first[s] + sequences[s].scored.size();
  std::vector<LogLikelihood> results(first.back());
  std::size_t at = 0;
  for (const EvaluationBatch& batch : batches) {
    for (const std::size_t s : batch.sequences) {
      for (std::size_t i = first[s]; i < first[s + 1]; ++i, ++at)
        results[i] = {.sum = all[at].sum, .greedy = all[at].greedy != 0};
    }
  }
  return results;
}

void share_sequences(std::vector<ScoredSequence>& sequences, Communicator& world) {
  // Lengths in front of what they count.
  std::vector<std::int32_t> flat;
  const auto put = [&](std::int64_t value) { flat.push_back(static_cast<std::int32_t>(value)); };
  const auto put_all = [&](const std::vector<std::int32_t>& values) {
    put(std::ssize(values));
    flat.insert(flat.end(), values.begin(), values.end());
  };
  if (world.rank() == 0) {
    put(std::ssize(sequences));
    for (const ScoredSequence& sequence : sequences) {
      put_all(sequence.ids);
      put(std::ssize(sequence.scored));
      for (const ScoredRows& scored : sequence.scored) {
        put(scored.first_row);
        put_all(scored.targets);
      }
    }
    if (std::ssize(flat) >= std::int64_t{1} << 31)
      throw Error("more than 2^31 tokens are to be evaluated at once: set a limit");
  }
  auto size = static_cast<std::int64_t>(flat.size());
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  flat.resize(static_cast<std::size_t>(size));
  world.broadcast(std::as_writable_bytes(std::span(flat)), 0);
  if (world.rank() == 0) return;

  std::size_t at = 0;
  const auto take = [&] { return static_cast<std::size_t>(flat.at(at++)); };
  const auto take_all = [&] {
    const std::size_t count = take();
    const auto begin = flat.begin() + static_cast<std::ptrdiff_t>(at);
    at += count;
    return std::vector<std::int32_t>(begin, begin + static_cast<std::ptrdiff_t>(count));
  };
  sequences.assign(take(), {});
  for (ScoredSequence& sequence : sequences) {
    sequence.ids = take_all();
    sequence.scored.assign(take(), {});
    for (ScoredRows& scored : sequence.scored) {
      scored.first_row = static_cast<std::int64_t>(take());
      scored.targets = take_all();
    }
  }
}

}  // namespace roundhouse
