#include "stages/evaluate/perplexity.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/tree_sum.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/micro_batch.h"

namespace roundhouse {
namespace {

// Each a shard of its own: any rank may have it.
std::vector<MicroBatch> cut_micro_batches(const Windows& windows) {
  const std::int64_t each = micro_batch_sequences(windows.length);
  std::vector<MicroBatch> batches;
  for (std::int64_t first = 0; first < windows.count(); first += each) {
    batches.push_back({.shard = static_cast<int>(batches.size()),
                       .first_sample = first,
                       .sequences = std::min(each, windows.count() - first),
                       .length = windows.length,
                       .first_row = 0});
  }
  return batches;
}

std::span<const std::int32_t> ids_of(const Windows& windows, const MicroBatch& batch) {
  return std::span(windows.ids)
      .subspan(static_cast<std::size_t>(batch.first_sample * windows.length),
               static_cast<std::size_t>(batch.rows()));
}

// Appends the mean loss of each window of a micro-batch.
void append_losses(const CausalLM& model, const CausalLM::Head& head, const Windows& windows,
                   const MicroBatch& batch, ConstMatrix residual, Backend& backend,
                   std::vector<double>& losses) {
  const auto length = static_cast<std::size_t>(windows.length);
  const auto ids = ids_of(windows, batch);
  std::vector<std::int32_t> targets(length);
  std::vector<float> loss(length);
  for (std::int64_t w = 0; w < batch.sequences; ++w) {
    const auto window = ids.subspan(static_cast<std::size_t>(w) * length, length);
    std::copy(window.begin() + 1, window.end(), targets.begin());
    targets.back() = -1;
    const Tensor logits = model.logits(
        head, residual.row_range(w * windows.length, (w + 1) * windows.length), backend);
    backend.cross_entropy({.logits = logits.view(), .target = targets, .loss = loss});
    double sum = 0;
    for (const float value : loss) sum += value;
    losses.push_back(sum / static_cast<double>(length - 1));
  }
}

}  // namespace

Windows cut_windows(const std::vector<std::int32_t>& tokens, std::int64_t length,
                    std::int64_t limit, const std::string& name) {
  std::int64_t count = static_cast<std::int64_t>(tokens.size()) / length;
  if (limit > 0) count = std::min(count, limit);
  if (count == 0) {
    throw InputError(name + ": " + std::to_string(tokens.size()) +
                     " tokens do not fill one window of " + std::to_string(length));
  }
  return {{tokens.begin(), tokens.begin() + count * length}, length};
}

std::string join_rows(std::string_view text) {
  std::string joined;
  joined.reserve(text.size() + text.size() / 16);
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size() - 1) + 1;  // behind the line feed
    const std::string_view line = text.substr(0, end);
    if (line.find_first_not_of(" \t\r\n") != std::string_view::npos) joined += line;
    text.remove_prefix(end);
    if (!text.empty()) joined += "\n\n";
  }
  return joined;
}

Perplexity measure_perplexity(const CausalLM& model, const DecoderBlock& shape,
                              const BlockSource& weights, const Windows& windows, Backend& backend,
                              Communicator& world, ActivationBudget& budget, Monitor& monitor) {
  const std::vector<MicroBatch> all = cut_micro_batches(windows);
  const PartRange range = parts_of_rank(static_cast<int>(all.size()), world.rank(), world.size());
  const std::vector<MicroBatch> mine(all.begin() + range.begin, all.begin() + range.end);
  Activations residual(budget, backend.activation_type(), shape.hidden_size());

  for (const MicroBatch& batch : mine) {
    const Tensor embedded = model.embed(ids_of(windows, batch), windows.length, backend);
    residual.reserve(batch.shard, embedded.rows());
    residual.store(batch.shard, 0, embedded.view(), backend);
  }
  for (int block = 0; block < model.config().blocks; ++block) {
    if (mine.empty()) break;
    monitor.tick();
    run_forward(shape, weights(block), mine, residual, backend, monitor);
  }

  std::vector<double> losses;
  if (!mine.empty()) {
    const CausalLM::Head head = model.load_head(backend);
    BatchReader reader(mine, {&residual}, backend);
    while (!reader.at_end()) {
      const MicroBatch batch = reader.batch();
      const Tensor last = std::move(reader.next().front());
      append_losses(model, head, windows, batch, last.view(), backend, losses);
      residual.release(batch.shard);
      monitor.tick();
    }
  }

  // Window order is rank order, so this sum has one order whoever held what.
  double sum = 0;
  for (const auto& part : world.all_gather(std::as_bytes(std::span(losses)))) {
    for (std::size_t i = 0; i < part.size(); i += sizeof(double)) {
      double loss = 0;
      std::memcpy(&loss, part.data() + i, sizeof loss);
      sum += loss;
    }
  }
  return {std::exp(sum / static_cast<double>(windows.count())), windows.count(), windows.length};
}

}  // namespace roundhouse
