#include "stages/evaluate/scored_sequence.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"
#include "stages/calibrate/samples.h"

namespace roundhouse {

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
