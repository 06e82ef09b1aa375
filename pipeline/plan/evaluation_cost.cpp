#include "pipeline/plan/evaluation_cost.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "stages/quantize/block_cost.h"

namespace roundhouse {
namespace {

constexpr double kClearlyFaster = 0.99;
constexpr double kTokensOfBatch = 2048;
constexpr double kMostOfDevice = 0.5;  // for weights: the rest is for what a batch needs

}  // namespace

EvaluationCost evaluation_cost(const EvaluationSite& site, const EvaluationSize& size, int rings) {
  const DeviceRates& rates = site.rates;
  const auto blocks = static_cast<double>(site.model.blocks);
  const int ranks = site.ranks / rings;  // of the smallest ring, which takes longest
  const int models = size.compared > 0 ? 2 : 1;
  const double weights = BlockSizes{site.decoder, 0}.all_weights();
  const double row = rates.bytes_of_activation() * static_cast<double>(site.decoder.hidden_size());

  EvaluationCost cost;
  cost.shape.rings = rings;
  if (!rates.is_host) {
    const double of_block = weights * rates.bytes_of_activation() * models;
    cost.shape.blocks_at_once = static_cast<int>(
        std::clamp(std::floor(kMostOfDevice * site.device_bytes / of_block), 1.0, blocks));
  }
  const WalkStages stages =
      stages_of_walk(static_cast<int>(site.model.blocks), ranks, cost.shape.blocks_at_once);
  int busiest = 0;  // blocks
  for (int rank = 0; rank < ranks; ++rank) busiest = std::max(busiest, stages.blocks_of_rank(rank));

  const double tokens = size.tokens + size.compared;
  // A batch is of one work, and is not divided.
  const double all_batches =
      std::max({1.0, std::ceil(tokens / kTokensOfBatch), static_cast<double>(size.works)});
  const double batches = std::ceil(all_batches / rings);
  const double of_ring = tokens * batches / all_batches;
  const BlockSizes sizes{site.decoder, of_ring, static_cast<double>(size.length)};
  const double forward =
      2 * of_ring * weights / rates.rate_of("", "forward") + sizes.attention() / rates.attention;
  const double head = 2 * tokens *
                      static_cast<double>(site.model.vocabulary * site.model.embedding_size) /
                      rates.rate_of("", "forward");
  const double portions =
      stages.weights_stay()
          ? 1
          : std::max(1.0, std::ceil(of_ring * row / std::max(1.0, site.activation_bytes)));
  const double load = weights * static_cast<double>(size_of(site.model.dtype)) / rates.load *
                      models * portions;  // of a block

  // Out of each stage and into the next one, or to the rank that has the head of the batch.
  const double stages_each = std::ceil(static_cast<double>(stages.stages) / ranks);
  double moving = 0;
  if (ranks > 1) moving += stages_each * (of_ring * row / rates.host_message);
  if (rates.host_copy > 0) moving += 2 * stages_each * (of_ring * row / rates.host_copy);
  const double fills = stages.weights_stay() ? std::max(1, size.works) : portions;
  const double stage_blocks = std::ceil(blocks / stages.stages);
  const double fill =
      fills * (ranks - 1) * (stage_blocks * forward + moving / stages_each) / batches;

  const int nodes = (site.ranks + rates.ranks_a_node - 1) / rates.ranks_a_node;
  cost.reads = rings * portions;
  cost.file_reads = ranks > rates.ranks_a_node ? rings : nodes;
  const double file_bytes = cost.file_reads * blocks * load * rates.load / portions;
  const double reading =
      std::max(file_bytes / rates.file_system, file_bytes / nodes / rates.file_read);
  const double computing =
      busiest * (forward + load) + head * std::ceil(batches / ranks) / all_batches;
  cost.seconds = computing + fill + moving + std::max(0.0, reading - computing);
  cost.work = blocks * (forward * tokens / of_ring + rings * load) + head;
  if (ranks > 1) {
    const double hops = stages.stages - 1 + (ranks - 1.0) / ranks;
    cost.messages = all_batches * hops;
    cost.sent = tokens * row * hops;
  }

  // The weights of one stage of one model at a time, unless they stay; then a batch inside a block, or at the head, which takes a
  // window by itself. Logits are float32.
  const double stage_weights = weights * stage_blocks * (stages.weights_stay() ? models : 1);
  const auto vocabulary = static_cast<double>(site.model.vocabulary);
  const double head_weights = vocabulary * static_cast<double>(site.model.embedding_size);
  const double inside = kTokensOfBatch * static_cast<double>(3 * site.model.hidden_size +
                                                             2 * site.model.intermediate_size);
  const double logits = std::min<double>(kTokensOfBatch, size.length) * vocabulary;
  cost.computing =
      rates.bytes_of_activation() * (stage_weights + head_weights) +
      std::max(rates.bytes_of_activation() * inside, models * (kTokensOfBatch * row + 4 * logits));
  // All batches of a ring wait for the rank that gets them next; where weights stay, those of one work for the heads that they are
  // dealt to.
  const double largest = size.largest > 0 ? size.largest : tokens / std::max(1, size.works);
  cost.waiting = std::min(row * (stages.weights_stay() ? largest / rings / ranks : of_ring),
                          site.activation_bytes);
  return cost;
}

EvaluationCost best_evaluation(const EvaluationSite& site, const EvaluationSize& size) {
  const auto blocks = static_cast<int>(site.model.blocks);
  std::optional<EvaluationCost> best;
  for (int rings = (site.ranks + blocks - 1) / blocks; rings <= site.ranks; ++rings) {
    const EvaluationCost cost = evaluation_cost(site, size, rings);
    if (!best || cost.seconds < kClearlyFaster * best->seconds) best = cost;
  }
  return *best;
}

}  // namespace roundhouse
