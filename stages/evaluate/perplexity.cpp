#include "stages/evaluate/perplexity.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "comm/tree_sum.h"
#include "stages/calibrate/samples.h"

namespace roundhouse {
namespace {

// A micro-batch: windows [first, first + count).
struct MicroBatch {
  std::int64_t first;
  std::int64_t count;
};

std::vector<MicroBatch> cut_micro_batches(const Windows& windows) {
  const std::int64_t each = micro_batch_sequences(windows.length);
  std::vector<MicroBatch> batches;
  for (std::int64_t first = 0; first < windows.count(); first += each) {
    batches.push_back({first, std::min(each, windows.count() - first)});
  }
  return batches;
}

std::span<const std::int32_t> ids_of(const Windows& windows, const MicroBatch& batch) {
  return std::span(windows.ids)
      .subspan(static_cast<std::size_t>(batch.first * windows.length),
               static_cast<std::size_t>(batch.count * windows.length));
}

// Appends the mean loss of each window of a micro-batch.
void append_losses(const CausalLM& model, const CausalLM::Head& head, const Windows& windows,
                   const MicroBatch& batch, ConstMatrix residual, Backend& backend,
                   std::vector<double>& losses) {
  const auto length = static_cast<std::size_t>(windows.length);
  const auto ids = ids_of(windows, batch);
  std::vector<std::int32_t> targets(length);
  std::vector<float> loss(length);
  for (std::int64_t w = 0; w < batch.count; ++w) {
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
  const std::vector<MicroBatch> batches = cut_micro_batches(windows);
  const PartRange mine =
      parts_of_rank(static_cast<int>(batches.size()), world.rank(), world.size());
  Activations residual(budget, backend.activation_type(), shape.hidden_size());

  for (int i = mine.begin; i < mine.end; ++i) {
    const MicroBatch& batch = batches[static_cast<std::size_t>(i)];
    const Tensor embedded = model.embed(ids_of(windows, batch), windows.length, backend);
    residual.reserve(i, embedded.rows());
    residual.store(i, 0, embedded.view(), backend);
  }
  for (int block = 0; block < model.config().blocks; ++block) {
    if (mine.begin == mine.end) break;
    monitor.tick();
    const BlockWeights block_weights = weights(block);
    for (int i = mine.begin; i < mine.end; ++i) {
      const MicroBatch& batch = batches[static_cast<std::size_t>(i)];
      BlockState state;
      state.residual = residual.load(i, 0, batch.count * windows.length, backend);
      state.sequences = batch.count;
      state.length = windows.length;
      shape.forward(block_weights, state, backend);
      residual.store(i, 0, state.residual.view(), backend);
      monitor.tick();
    }
  }

  std::vector<double> losses;
  if (mine.begin < mine.end) {
    const CausalLM::Head head = model.load_head(backend);
    for (int i = mine.begin; i < mine.end; ++i) {
      const MicroBatch& batch = batches[static_cast<std::size_t>(i)];
      const Tensor last = residual.load(i, 0, batch.count * windows.length, backend);
      append_losses(model, head, windows, batch, last.view(), backend, losses);
      residual.release(i);
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
