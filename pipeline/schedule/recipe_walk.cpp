#include "pipeline/schedule/recipe_walk.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <utility>

#include "base/numerical_error.h"
#include "pipeline/schedule/stored_progress.h"
#include "pipeline/schedule/unit.h"
#include "pipeline/watch/time_left.h"
#include "stages/flow/micro_batch.h"
#include "stages/store/quantized_weights.h"

namespace roundhouse {

RecipeWalk::RecipeWalk(Schedule& schedule, const Mesh& mesh, Handover& handover, std::size_t number,
                       const std::vector<Recipe>& all, const RecipeState& state)
    : s_(schedule),
      mesh_(mesh),
      handover_(handover),
      number_(number),
      recipe_(all[number]),
      all_(all),
      state_(state),
      samples_(schedule.samples_of(recipe_)),
      timing_(schedule.interruption_hours),
      progress_timing_(schedule.interruption_hours),
      method_(schedule.method_of(recipe_)),
      prefetch_(schedule.model.checkpoint()) {}

void RecipeWalk::skip() {
  if (receives()) {
    StreamActivations activations = make_activations();
    handover_.receive(activations, shards());
  }
  if (hands_over()) handover_.send_stop();
}

RecipeWalk::End RecipeWalk::run_independent() {
  for (int block = own().begin; block < own().end; ++block) {
    if (state_.done[static_cast<std::size_t>(block)]) continue;
    if (stop()) return End::kStopped;
    if (!make_unit(block, {})) return End::kFailed;
  }
  return End::kDone;
}

RecipeWalk::End RecipeWalk::run_in_order() {
  const int begin = std::max(own().begin, first_block());
  const int end = std::min(own().end, last_block() + 1);
  if (begin >= end) return End::kDone;

  Snapshots snapshots(recipe_, all_, shards(), s_.store, s_.monitor);
  StreamActivations activations = make_activations();
  if (receives()) {
    s_.monitor.phase(recipe_.name + ": waiting for the stage before");
    const auto start = std::chrono::steady_clock::now();
    switch (handover_.receive(activations, shards())) {
      case Handover::Arrival::kStopped:
        return stopped();
      case Handover::Arrival::kFailed:
        return failed();
      case Handover::Arrival::kActivations:
        report_arrival(begin, seconds_since(start));
    }
  } else if (begin > 0) {
    s_.monitor.phase(recipe_.name + ": reading the snapshot after block " +
                     std::to_string(begin - 1));
    snapshots.load(begin, activations);
  } else {
    embed(activations);
  }
  for (int block = begin; block < end; ++block) {
    if (stop()) return stopped();
    const auto start = std::chrono::steady_clock::now();
    const bool done = state_.done[static_cast<std::size_t>(block)];
    if (done) {
      run_committed(block, activations);
    } else if (!make_unit(block, activations)) {
      mesh_.team().barrier();
      if (mesh_.team().rank() == 0) snapshots.remove_all(samples_->shards());
      return failed();
    }
    const double seconds = seconds_since(start);
    timing_.block_done(seconds, done ? seconds : seconds * forward_share());
    if (block < last_block()) write_snapshot(block + 1, activations, snapshots);
  }
  if (end == last_block() + 1) {
    finish_writing(s_);  // what the last of the snapshots is still good for
    if (mesh_.team().rank() == 0) snapshots.remove_all(samples_->shards());
  }
  if (hands_over()) handover_.send(std::move(activations), shards());
  return End::kDone;
}

RecipeWalk::End RecipeWalk::stopped() {
  if (hands_over()) handover_.send_stop();
  return End::kStopped;
}

// What this stage waited for, apart from what it works; and the bytes that came, for all ranks of the team.
void RecipeWalk::report_arrival(int block, double seconds) {
  if (mesh_.team().rank() != 0) return;
  const std::int64_t streams =
      (recipe_.needs.quantized_stream ? 1 : 0) + (recipe_.needs.full_precision_stream ? 1 : 0);
  const std::int64_t bytes = streams * samples_->count() * samples_->length() *
                             s_.decoder.hidden_size() *
                             static_cast<std::int64_t>(size_of(s_.backend.activation_type()));
  s_.monitor.event({{"event", "handover"},
                    {"recipe", recipe_.name},
                    {"block", block},
                    {"stage", mesh_.stage()},
                    {"waited_seconds", seconds},
                    {"bytes", bytes}});
}

RecipeWalk::End RecipeWalk::failed() {
  if (hands_over()) handover_.send_failed();
  return End::kFailed;
}

bool RecipeWalk::stop() {
  std::uint8_t wish = s_.monitor.stop_requested() ? 1 : 0;
  mesh_.team().broadcast(std::as_writable_bytes(std::span(&wish, 1)), 0);
  return wish != 0;
}

StreamActivations RecipeWalk::make_activations() {
  const auto make = [&](bool wanted) {
    if (!wanted) return std::unique_ptr<Activations>();
    auto activations = std::make_unique<Activations>(s_.budget, s_.backend.activation_type(),
                                                     s_.decoder.hidden_size());
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      const PartRange range = samples_->samples_of_shard(shard);
      activations->reserve(shard, (range.end - range.begin) * samples_->length());
    }
    return activations;
  };
  return {.quantized = make(recipe_.needs.quantized_stream),
          .full_precision = make(recipe_.needs.full_precision_stream)};
}

void RecipeWalk::embed(StreamActivations& activations) {
  s_.monitor.phase(recipe_.name + ": embedding");
  for (int shard = shards().begin; shard < shards().end; ++shard) {
    for (const MicroBatch& batch : micro_batches_of_shard(*samples_, shard)) {
      const Tensor rows = s_.model.embed(samples_->ids(batch.first_sample, batch.sequences),
                                         batch.length, s_.backend);
      for (const auto& stream : activations.all()) {
        if (stream.activations)
          stream.activations->store(shard, batch.first_row, rows.view(), s_.backend);
      }
      s_.monitor.tick();
    }
  }
}

BlockSite RecipeWalk::site(int block) const {
  return {.backend = s_.backend,
          .team = mesh_.team(),
          .device_team = mesh_.device_team(),
          .decoder = s_.decoder,
          .block = block,
          .samples = samples_,
          .monitor = s_.monitor};
}

BlockTask RecipeWalk::task(int block, BlockWeights& weights, const StreamActivations& activations) {
  return {site(block),
          s_.model.checkpoint(),
          weights,
          activations.quantized.get(),
          activations.full_precision.get(),
          s_.budget,
          s_.saved_activation_bytes,
          state_.decision ? *state_.decision : nothing_decided_};
}

bool RecipeWalk::make_unit(int block, const StreamActivations& activations) {
  const auto start = std::chrono::steady_clock::now();
  s_.monitor.phase(recipe_.name + " block " + std::to_string(block));
  BlockWeights weights = s_.decoder.load(s_.model.checkpoint(), block, s_.backend);
  if (block + 1 < own().end) prefetch_.start(s_.decoder, block + 1);
  const double load_seconds = seconds_since(start);
  BlockTask block_task = task(block, weights, activations);
  StoredProgress progress(recipe_.name, block, s_.store, mesh_.team(), s_.monitor, progress_timing_,
                          [&] { return origin_of_block(s_, block); });
  block_task.progress = &progress;
  try {
    roundhouse::make_unit(s_, recipe_, *method_, block_task, start, load_seconds);
    return true;
  } catch (const UnquantizableError& error) {  // on all ranks of the team alike
    s_.backend.finish_downloads();
    if (mesh_.team().rank() == 0) note_failure(s_, number_, recipe_.name, block, error.what());
    return false;
  }
}

double RecipeWalk::forward_share() const {
  SampleOptions size;
  size.samples = static_cast<int>(samples_->count());
  size.sequence_length = static_cast<int>(samples_->length());
  const int streams =
      (recipe_.needs.quantized_stream ? 1 : 0) + (recipe_.needs.full_precision_stream ? 1 : 0);
  return streams * forward_cost(s_.decoder, size) /
         block_cost(*method_, s_.decoder, size, !s_.backend.is_host_memory());
}

void RecipeWalk::run_committed(int block, const StreamActivations& activations) {
  s_.monitor.phase(recipe_.name + " block " + std::to_string(block) +
                   " (done before: forward only)");
  const auto forward = [&](Activations* stream, const std::function<BlockWeights()>& load) {
    if (!stream) return;
    BlockWeights weights = load();
    run_forward(site(block), weights, *stream);
  };
  forward(activations.quantized.get(), [&] {
    return load_quantized_weights(s_.model, s_.decoder, s_.store, recipe_.name, block, s_.backend);
  });
  forward(activations.full_precision.get(),
          [&] { return s_.decoder.load(s_.model.checkpoint(), block, s_.backend); });
}

void RecipeWalk::write_snapshot(int blocks_done, const StreamActivations& activations,
                                Snapshots& snapshots) {
  double bytes = 0;
  for (const auto& stream : activations.all()) {
    for (int shard = shards().begin; stream.activations && shard < shards().end; ++shard)
      bytes += static_cast<double>(stream.activations->bytes(shard).size());
  }
  std::uint8_t due = timing_.due(bytes) ? 1 : 0;
  mesh_.team().broadcast(std::as_writable_bytes(std::span(&due, 1)), 0);
  if (due == 0) return;
  s_.monitor.phase(recipe_.name + ": snapshot after block " + std::to_string(blocks_done - 1));
  const auto start = std::chrono::steady_clock::now();
  finish_writing(
      s_);  // older snapshots go, from which a block that is not there could be made again
  snapshots.write(blocks_done, activations, mesh_.team());
  timing_.written(bytes, seconds_since(start));
}

}  // namespace roundhouse
