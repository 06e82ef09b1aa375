#include "stages/evaluate/log_likelihood.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "comm/tree_sum.h"
#include "kernels/cpu/vector_math.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/micro_batch.h"

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
  backend.cross_entropy({.logits = logits.view(), .target = chunk.targets, .loss = loss});
  std::int64_t row = 0;
  for (const Piece& piece : chunk.pieces) {
    Score& score = scores[piece.score];
    const std::int64_t stop = row + piece.rows();
    if (greedy == Greedy::kYes && score.greedy != 0) {
      score.greedy = is_greedy(logits.view().row_range(row, stop), piece.targets, backend) ? 1 : 0;
    }
    for (; row < stop; ++row) score.sum -= static_cast<double>(loss[row]);
  }
}

// Appends how far the second model's distributions are from the first one's, at the rows of which a token is scored.
void add_divergences(const HeadChunk& chunk, const Tensor& reference, const Tensor& logits,
                     Backend& backend, std::vector<Divergence>& divergences) {
  const auto cols = static_cast<std::size_t>(logits.cols());
  std::vector<float> p(cols), q(cols);
  for (std::size_t r = 0; r < chunk.targets.size(); ++r) {
    if (chunk.targets[r] < 0) continue;
    const auto row = static_cast<std::int64_t>(r);
    backend.download(reference.view().row_range(row, row + 1).data,
                     std::as_writable_bytes(std::span(p)));
    backend.download(logits.view().row_range(row, row + 1).data,
                     std::as_writable_bytes(std::span(q)));
    divergences.push_back(divergence(p, q));
  }
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

namespace {

// Runs this rank's batches through the blocks of all streams (models of one shape), side by side, and hands the last residuals of
// each batch to `visit`, in the batches' order. The one walk of everything that is evaluated. False: asked to stop, it ended early.
bool walk(const CausalLM& model, const DecoderBlock& decoder, std::span<const BlockSource> streams,
          std::span<const ScoredSequence> sequences, std::span<const EvaluationBatch> batches,
          PartRange mine, Backend& backend, ActivationBudget& budget, Monitor& monitor,
          const std::function<void(const EvaluationBatch& batch, const CausalLM::Head& head,
                                   std::span<const Tensor> residuals)>& visit) {
  if (mine.begin == mine.end) return true;
  std::vector<MicroBatch> pieces;  // each a shard of its own
  for (int i = mine.begin; i < mine.end; ++i) {
    const EvaluationBatch& batch = batches[i];
    pieces.push_back({.shard = i,
                      .first_sample = 0,
                      .sequences = std::ssize(batch.sequences),
                      .length = batch.length,
                      .first_row = 0});
  }
  std::vector<Activations> residuals;
  for (std::size_t s = 0; s < streams.size(); ++s)
    residuals.emplace_back(budget, backend.activation_type(), decoder.hidden_size());
  for (const MicroBatch& piece : pieces) {
    const EvaluationBatch& batch = batches[piece.shard];
    const Tensor embedded = model.embed(padded_ids(sequences, batch), batch.length, backend);
    for (Activations& residual : residuals) {
      residual.reserve(piece.shard, embedded.rows());
      residual.store(piece.shard, 0, embedded.view(), backend);
    }
  }
  for (int block = 0; block < model.config().blocks; ++block) {
    for (std::size_t s = 0; s < streams.size(); ++s) {
      monitor.tick();
      if (monitor.stop_requested()) return false;
      run_forward(decoder, streams[s](block), pieces, residuals[s], residuals[s], backend, monitor);
    }
  }
  const CausalLM::Head head = model.load_head(backend);
  std::vector<const Activations*> from;
  for (const Activations& residual : residuals) from.push_back(&residual);
  BatchReader reader(std::move(pieces), std::move(from), backend);
  while (!reader.at_end()) {
    if (monitor.stop_requested()) return false;
    const int i = reader.batch().shard;
    visit(batches[i], head, reader.next());
    for (Activations& residual : residuals) residual.release(i);
    monitor.tick();
  }
  return true;
}

// What all ranks have found, by rank, which is the order of the batches, whoever held what.
template <class T>
std::vector<T> gathered(const std::vector<T>& mine, Communicator& world) {
  std::vector<T> all;
  for (const auto& part : world.all_gather(std::as_bytes(std::span(mine)))) {
    const std::size_t before = all.size();
    all.resize(before + part.size() / sizeof(T));
    if (!part.empty()) std::memcpy(&all[before], part.data(), part.size());
  }
  return all;
}

// From the order of batches to that of sequences, each of which has so many.
template <class T, class Count>
std::vector<T> sorted(const std::vector<T>& all, std::span<const ScoredSequence> sequences,
                      std::span<const EvaluationBatch> batches, const Count& count) {
  std::vector<std::size_t> first(sequences.size() + 1, 0);
  for (std::size_t s = 0; s < sequences.size(); ++s) first[s + 1] = first[s] + count(sequences[s]);
  require(all.size() == first.back(), "the ranks have not evaluated every row once");
  std::vector<T> results(first.back());
  std::size_t at = 0;
  for (const EvaluationBatch& batch : batches) {
    for (const std::size_t s : batch.sequences) {
      for (std::size_t i = first[s]; i < first[s + 1]; ++i, ++at) results[i] = all[at];
    }
  }
  return results;
}

}  // namespace

Divergence divergence(std::span<const float> reference, std::span<const float> logits) {
  const std::size_t n = reference.size();
  const auto top = std::ranges::max_element(reference) - reference.begin();
  const auto other_top = std::ranges::max_element(logits) - logits.begin();
  const float most = reference[top];
  const float other_most = logits[other_top];
  // In eight sums each, which the compiler keeps in vectors.
  constexpr std::size_t kSums = 8;
  double sums[kSums] = {}, other_sums[kSums] = {}, differences[kSums] = {};
  for (std::size_t begin = 0; begin < n; begin += kSums) {
    const std::size_t width = std::min(kSums, n - begin);
    for (std::size_t k = 0; k < width; ++k) {
      const float a = reference[begin + k] - most, b = logits[begin + k] - other_most;
      const double p = fast_exp(a);
      sums[k] += p;
      other_sums[k] += fast_exp(b);
      differences[k] += p * (static_cast<double>(a) - b);
    }
  }
  double sum = 0, other_sum = 0, difference = 0;
  for (std::size_t k = 0; k < kSums; ++k) {
    sum += sums[k];
    other_sum += other_sums[k];
    difference += differences[k];
  }
  // sum p (a - ln sum e^a - b + ln sum e^b)
  return {.nats = difference / sum - std::log(sum) + std::log(other_sum),
          .same_top = top == other_top ? 1 : 0};
}

Comparison compare_models(const CausalLM& model, const DecoderBlock& decoder,
                          const BlockSource& reference, const BlockSource& weights,
                          std::span<const ScoredSequence> sequences, Greedy greedy,
                          Backend& backend, Communicator& world, ActivationBudget& budget,
                          Monitor& monitor) {
  check_rows(sequences);
  const std::vector<EvaluationBatch> batches = cut_batches(sequences);
  std::vector<BlockSource> streams;
  if (reference) streams.push_back(reference);
  streams.push_back(weights);
  std::vector<Score> scores;  // of this rank's batches, in their order
  std::vector<Divergence> divergences;
  const bool whole =
      walk(model, decoder, streams, sequences, batches,
           parts_of_rank(static_cast<int>(batches.size()), world.rank(), world.size()), backend,
           budget, monitor,
           [&](const EvaluationBatch& batch, const CausalLM::Head& head,
               std::span<const Tensor> residuals) {
             const std::size_t before = scores.size();
             for (const std::size_t s : batch.sequences)
               scores.resize(scores.size() + sequences[s].scored.size());
             for (const HeadChunk& chunk : cut_chunks(sequences, batch)) {
               const Tensor logits = logits_of(chunk, model, head, residuals.back(), backend);
               add_scores(chunk, logits, greedy, backend, std::span(scores).subspan(before));
               if (!reference) continue;
               add_divergences(chunk, logits_of(chunk, model, head, residuals.front(), backend),
                               logits, backend, divergences);
             }
           });
  const auto scored_rows = [](const ScoredSequence& sequence) {
    std::size_t rows = 0;
    for (const ScoredRows& scored : sequence.scored)
      rows += static_cast<std::size_t>(
          std::ranges::count_if(scored.targets, [](std::int32_t target) { return target >= 0; }));
    return rows;
  };
  Comparison comparison;
  comparison.stopped = world.all_reduce_max(whole ? 0 : 1) != 0;
  if (comparison.stopped) return comparison;
  for (const Score& score :
       sorted(gathered(scores, world), sequences, batches,
              [](const ScoredSequence& sequence) { return sequence.scored.size(); })) {
    comparison.log_likelihoods.push_back({.sum = score.sum, .greedy = score.greedy != 0});
  }
  if (reference)
    comparison.rows = sorted(gathered(divergences, world), sequences, batches, scored_rows);
  return comparison;
}

std::vector<LogLikelihood> measure_log_likelihoods(
    const CausalLM& model, const DecoderBlock& decoder, const BlockSource& weights,
    std::span<const ScoredSequence> sequences, Greedy greedy, Backend& backend, Communicator& world,
    ActivationBudget& budget, Monitor& monitor) {
  return compare_models(model, decoder, {}, weights, sequences, greedy, backend, world, budget,
                        monitor)
      .log_likelihoods;
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
