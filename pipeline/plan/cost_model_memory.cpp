// Memory of a job's ranks.
#include <algorithm>

#include "pipeline/plan/cost_model.h"

namespace roundhouse {
namespace {

// Where activations go through a block on a CPU: the tokenizer, texts, and the code and buffers of oneDNN's products. Found beside what
// is reckoned here, on the bundled model: 12 MiB with AVX2, some 20 with AVX-512.
constexpr double kProductBytes = 17e6;

}  // namespace

CostModel::Streams CostModel::streams_of(const Wave& wave) const {
  Streams streams;
  int carriers = 0;
  for (const std::size_t r : wave) {
    if (recipe(r).needs.quantized_stream) streams.own += one_stream_bytes(r);
    if (!recipe(r).needs.full_precision_stream) continue;
    streams.shared = one_stream_bytes(r);
    ++carriers;
  }
  if (carriers > 1) streams.output = streams.shared;
  return streams;
}

int CostModel::most_blocks_of_stage() const {
  return (static_cast<int>(job_.model.blocks) + job_.mesh.stages() - 1) / job_.mesh.stages();
}

MemoryUse CostModel::memory(const Wave& wave) const {
  const DeviceRates& rates = job_.rates;
  const double share = BlockCost{}.busiest("forward", team(), shards());
  MemoryUse use;
  double computing = 0, kept = 0, gradients = 0, record = 0, weights = weights_;
  for (const std::size_t r : wave) {
    const InsideBlock of = inside_block(r, wave.size() > 1);
    computing = std::max(computing, of.device);
    kept = std::max(kept, of.kept);
    gradients = std::max(gradients, of.gradients);
    record = std::max({record, record_bytes(r), outer_record_bytes(r)});
    weights = std::max(weights, outer_weights(r));
  }
  const Streams streams = streams_of(wave);
  use.activations = (streams.all() + streams.output + kept) * share;
  // What goes to the next stage is kept until it has arrived there.
  if (job_.mesh.pipeline > 1) use.activations += streams.all() * share;
  use.activations = std::max(use.activations, gradients * share);
  (rates.is_host ? use.host : use.device) += computing;
  // Codes of all linears, a byte each; beside them the record before, packed, and its file's image. That is gone when these are packed.
  use.host += rates.program_bytes + use.activations + weights + 2 * record;
  // The next block's weights are read ahead: pages of the model's file, which the system may take back.
  if (most_blocks_of_stage() > 1) use.host += block_bytes_ / (loads_in_parts() ? team() : 1);
  return use;
}

MemoryUse CostModel::evaluation_memory() const {
  const DeviceRates& rates = job_.rates;
  const EvaluationCost cost = evaluation(Evaluated::kRecipe, job_.ranks);
  MemoryUse use;
  if (cost.computing <= 0) return use;
  use.activations = cost.waiting;
  (rates.is_host ? use.host : use.device) += cost.computing + (rates.is_host ? kProductBytes : 0);
  use.host += rates.program_bytes + use.activations + block_bytes_;
  return use;
}

// Of making a block of a recipe, on the device or, in `kept` and `gradients`, of activations over all shards.
CostModel::InsideBlock CostModel::inside_block(std::size_t r, bool beside_others) const {
  const DeviceRates& rates = job_.rates;
  const Needs& needs = recipe(r).needs;
  const double activation = rates.bytes_of_activation();
  const SampleOptions& samples = samples_of(r);
  const double tokens = static_cast<double>(samples.samples) * samples.sequence_length;
  InsideBlock use;
  use.kept = (costs_[r].memory.kept_cols +
              costs_[r].memory.streams * static_cast<double>(job_.model.hidden_size)) *
             tokens * activation;
  const auto sequences = [&](std::int64_t count, std::int64_t length) {  // of a micro-batch
    return std::min(micro_batch_sequences(length), (count + shards() - 1) / shards());
  };
  const auto working = [&](const BlockMemory& memory, std::int64_t count, std::int64_t length) {
    const int pieces = memory.pieces == Cut::kShards ? shards() : memory.pieces;
    const int alive = most_partial_sums(pieces, 0, team(), memory.added_at_once);
    double sums =
        memory.summed * (alive - 1) + (memory.arriving > 0 ? memory.arriving : memory.summed);
    // Who gets a whole sum has its own partial sums beside it, and a band of all others'.
    if (team() > 1 && memory.gathered > 0) {
      const int own = partial_sums_of_rank(pieces, 0, team());
      int others = 0;
      for (int rank = 1; rank < team(); ++rank)
        others += partial_sums_of_rank(pieces, rank, team());
      sums = std::max(sums, own * memory.summed + memory.gathered + others * memory.band);
    }
    // Where others are given the original weights after it, none goes when what takes its place comes.
    const double weights = weights_ + memory.weights + (beside_others ? memory.replaced : 0);
    double bytes = weights * activation + memory.by_tiles / team() + std::max(sums, memory.whole);
    if (!needs.calibration()) return bytes;
    if (rates.is_host) bytes += kProductBytes;
    // What a micro-batch has on its way through a block, or what is saved of one for the way back.
    const auto batch = static_cast<double>(sequences(count, length) * length);
    double passing =
        batch * activation *
        static_cast<double>(3 * job_.model.hidden_size + 2 * job_.model.intermediate_size);
    if (memory.saved_sequences > 0) {
      const auto saved = static_cast<double>(job_.decoder.saved_bytes(
          memory.saved_sequences * length, rates.is_host ? DType::kF32 : DType::kBF16));
      const double budget = job_.config.saved_activation_gib > 0
                                ? job_.config.saved_activation_gib * 0x1p30
                                : (rates.is_host ? rates.host_bytes : rates.device_bytes) / 4;
      passing = std::max(passing, saved <= budget ? saved : saved / 2);
    }
    bytes += passing;
    return bytes;
  };
  use.device = working(costs_[r].memory, samples.samples, samples.sequence_length);
  if (needs.gradients) {
    const Needs::Gradients& of = *needs.gradients;
    BlockMemory memory = gradient_block(r).memory;
    memory.saved_sequences = sequences(of.samples, of.sequence_length);
    // The head is there as long as the last block's gradients are made.
    const double head =
        static_cast<double>(job_.model.vocabulary * job_.model.embedding_size) * activation;
    use.device = std::max(use.device, working(memory, of.samples, of.sequence_length) + head);
    // The inputs of all blocks of a stage, and the gradient.
    use.gradients = (most_blocks_of_stage() + 1) * gradient_stream_bytes(r);
  }
  return use;
}

}  // namespace roundhouse
