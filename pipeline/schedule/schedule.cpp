#include "pipeline/schedule/schedule.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "comm/together.h"
#include "model/checkpoint/weight_prefetch.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/finished_recipes.h"
#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/handover.h"
#include "pipeline/schedule/stored_progress.h"
#include "pipeline/schedule/unit.h"
#include "pipeline/watch/time_left.h"
#include "stages/flow/micro_batch.h"
#include "stages/store/quantized_weights.h"

namespace roundhouse {
namespace {

// One stage's walk through one recipe.
class RecipeWalk {
 public:
  RecipeWalk(Schedule& schedule, Handover& handover, const Recipe& recipe,
             const std::vector<Recipe>& all, const RecipeState& state,
             const nlohmann::json& decision)
      : s_(schedule),
        handover_(handover),
        recipe_(recipe),
        all_(all),
        state_(state),
        decision_(decision),
        timing_(schedule.interruption_hours),
        progress_timing_(schedule.interruption_hours),
        method_(schedule.method_of(recipe)),
        prefetch_(schedule.model.checkpoint()) {}

  // Precondition: something is missing. False: stopped early.
  bool run() { return in_order() ? run_in_order() : run_independent(); }

  // In place of run() once this stage has stopped: takes what the stage before still sends (it may not have heard yet)
  // and throws it away, and tells the next one not to wait.
  void skip() {
    if (receives()) {
      StreamActivations activations = make_activations();
      handover_.receive(activations, shards());
    }
    if (hands_over()) handover_.send_stop();
  }

 private:
  bool receives() const {
    return in_order() && first_block() < own().begin && own().begin <= last_block();
  }
  bool hands_over() const {
    return in_order() && first_block() < own().end && own().end <= last_block();
  }
  bool in_order() const { return recipe_.needs.streams(); }
  PartRange own() const { return s_.mesh.blocks(); }
  PartRange shards() const {
    return parts_of_rank(s_.samples->shards(), s_.mesh.team().rank(), s_.mesh.team().size());
  }
  int first_block() const { return state_.snapshot; }
  int last_block() const { return state_.last_missing(); }

  bool run_independent() {
    for (int block = own().begin; block < own().end; ++block) {
      if (state_.done[static_cast<std::size_t>(block)]) continue;
      if (stop()) return false;
      make_unit(block, {});
    }
    return true;
  }

  bool run_in_order() {
    const int begin = std::max(own().begin, first_block());
    const int end = std::min(own().end, last_block() + 1);
    if (begin >= end) return true;

    Snapshots snapshots(recipe_, all_, shards(), s_.store, s_.monitor);
    StreamActivations activations = make_activations();
    if (receives()) {
      s_.monitor.phase(recipe_.name + ": waiting for the stage before");
      if (!handover_.receive(activations, shards())) return stopped();
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
      } else {
        make_unit(block, activations);
      }
      const double seconds = seconds_since(start);
      timing_.block_done(seconds, done ? seconds : seconds * forward_share());
      if (block < last_block()) write_snapshot(block + 1, activations, snapshots);
    }
    if (end == last_block() + 1) {
      s_.mesh.team().barrier();
      if (s_.mesh.team().rank() == 0) snapshots.remove_all(s_.samples->shards());
    }
    if (hands_over()) handover_.send(std::move(activations), shards());
    return true;
  }

  bool stopped() {
    if (hands_over()) handover_.send_stop();
    return false;
  }

  // The team ends at the same block: its rank 0 decides.
  bool stop() {
    std::uint8_t wish = s_.monitor.stop_requested() ? 1 : 0;
    s_.mesh.team().broadcast(std::as_writable_bytes(std::span(&wish, 1)), 0);
    return wish != 0;
  }

  StreamActivations make_activations() {
    const auto make = [&](bool wanted) {
      if (!wanted) return std::unique_ptr<Activations>();
      auto activations = std::make_unique<Activations>(s_.budget, s_.backend.activation_type(),
                                                       s_.shape.hidden_size());
      for (int shard = shards().begin; shard < shards().end; ++shard) {
        const PartRange range = s_.samples->samples_of_shard(shard);
        activations->reserve(shard, (range.end - range.begin) * s_.samples->length());
      }
      return activations;
    };
    return {.quantized = make(recipe_.needs.quantized_stream),
            .full_precision = make(recipe_.needs.full_precision_stream)};
  }

  void embed(StreamActivations& activations) {
    s_.monitor.phase(recipe_.name + ": embedding");
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      for (const MicroBatch& batch : micro_batches_of_shard(*s_.samples, shard)) {
        const Tensor rows = s_.model.embed(s_.samples->ids(batch.first_sample, batch.sequences),
                                           batch.length, s_.backend);
        for (const auto& stream : activations.all()) {
          if (stream.activations)
            stream.activations->store(shard, batch.first_row, rows.view(), s_.backend);
        }
        s_.monitor.tick();
      }
    }
  }

  BlockSite site(int block) const {
    return {.backend = s_.backend,
            .team = s_.mesh.team(),
            .device_team = s_.mesh.device_team(),
            .shape = s_.shape,
            .block = block,
            .samples = s_.samples,
            .monitor = s_.monitor};
  }

  BlockTask task(int block, BlockWeights& weights, const StreamActivations& activations) {
    return {site(block),
            s_.model.checkpoint(),
            weights,
            activations.quantized.get(),
            activations.full_precision.get(),
            s_.budget,
            s_.saved_activation_bytes,
            decision_};
  }

  void make_unit(int block, const StreamActivations& activations) {
    const auto start = std::chrono::steady_clock::now();
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block));
    BlockWeights weights = s_.shape.load(s_.model.checkpoint(), block, s_.backend);
    if (block + 1 < own().end) prefetch_.start(s_.shape, block + 1);
    const double load_seconds = seconds_since(start);
    BlockTask block_task = task(block, weights, activations);
    StoredProgress progress(recipe_.name, block, s_.store, s_.mesh.team(), s_.monitor,
                            progress_timing_, [&] { return origin_of_block(s_, block); });
    block_task.progress = &progress;
    roundhouse::make_unit(s_, recipe_, *method_, block_task, start, load_seconds);
  }

  // Of making a unit: what only running it forward would take, by floating-point operations.
  double forward_share() const {
    SampleOptions size;
    size.samples = static_cast<int>(s_.samples->count());
    size.sequence_length = static_cast<int>(s_.samples->length());
    const int streams =
        (recipe_.needs.quantized_stream ? 1 : 0) + (recipe_.needs.full_precision_stream ? 1 : 0);
    return streams * forward_cost(s_.shape, size) /
           block_cost(*method_, s_.shape, size, !s_.backend.is_host_memory());
  }

  // Each stream through its own weights of the block.
  void run_committed(int block, const StreamActivations& activations) {
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block) +
                     " (done before: forward only)");
    const auto forward = [&](Activations* stream, const std::function<BlockWeights()>& load) {
      if (!stream) return;
      BlockWeights weights = load();
      run_forward(site(block), weights, *stream);
    };
    forward(activations.quantized.get(), [&] {
      return load_quantized_weights(s_.model, s_.shape, s_.store, recipe_.name, block, s_.backend);
    });
    forward(activations.full_precision.get(),
            [&] { return s_.shape.load(s_.model.checkpoint(), block, s_.backend); });
  }

  // The team's rank 0 decides for all of it.
  void write_snapshot(int blocks_done, const StreamActivations& activations, Snapshots& snapshots) {
    double bytes = 0;
    for (const auto& stream : activations.all()) {
      for (int shard = shards().begin; stream.activations && shard < shards().end; ++shard)
        bytes += static_cast<double>(stream.activations->bytes(shard).size());
    }
    std::uint8_t due = timing_.due(bytes) ? 1 : 0;
    s_.mesh.team().broadcast(std::as_writable_bytes(std::span(&due, 1)), 0);
    if (due == 0) return;
    s_.monitor.phase(recipe_.name + ": snapshot after block " + std::to_string(blocks_done - 1));
    const auto start = std::chrono::steady_clock::now();
    snapshots.write(blocks_done, activations, s_.mesh.team());
    timing_.written(bytes, seconds_since(start));
  }

  Schedule& s_;
  Handover& handover_;
  const Recipe& recipe_;
  const std::vector<Recipe>& all_;
  const RecipeState& state_;
  const nlohmann::json& decision_;
  SnapshotTiming timing_;           // of the activations between blocks
  SnapshotTiming progress_timing_;  // of what is learned inside one
  std::unique_ptr<Method> method_;
  WeightPrefetch prefetch_;
};

// What a record says it was made of and by, added to what others said.
void learn_origin(const Recipe& recipe, const nlohmann::json& record, RecipeState& state) {
  for (const auto& [tensor, hash] : record[kMadeOf].items()) {
    const std::string theirs = hash.get<std::string>();
    if (state.made_of.emplace(tensor, theirs).first->second == theirs) continue;
    throw InputError("recipes/" + recipe.name +
                     ": its records were not made of one model: they differ in what they say of " +
                     in_quotes(tensor) + ". Use another run folder");
  }
  state.computed_by.insert(record[kComputedBy].get<std::string>());
}

nlohmann::json origin_of(const nlohmann::json& attributes) {
  return {{kMadeOf, attributes.value(kMadeOf, nlohmann::json::object())},
          {kComputedBy, attributes.value(kComputedBy, "")}};
}

// Rank 0 reads, all ranks know.
void look_at_decision(const Recipe& recipe, RunStore& store, Communicator& world,
                      RecipeState& state) {
  const std::string key = decision_key(recipe.name);
  nlohmann::json found;
  if (world.rank() == 0) {
    if (const std::optional<Record> record = store.load(key)) {
      found = origin_of(record->attributes);
      found[kDecision] = record->attributes.at(kDecision);
      found["bytes"] = store.bytes(key);
    }
  }
  found = nlohmann::json::parse(share(world, found.dump()));
  if (found.is_null()) return;
  learn_origin(recipe, found, state);
  store.expect(key, found["bytes"].get<std::uint64_t>());
  state.decision = std::move(found[kDecision]);
}

// Seals and attributes of a recipe's blocks. Each rank reads its share; what it found counts for all.
RecipeState look_at_blocks(const Recipe& recipe, int blocks, RunStore& store, Communicator& world,
                           const std::function<void()>& tick) {
  RecipeState state;
  const PartRange mine = parts_of_rank(blocks, world.rank(), world.size());
  nlohmann::json found = nlohmann::json::array();
  for (int block = mine.begin; block < mine.end; ++block) {
    const std::string key = block_key(recipe.name, block);
    nlohmann::json record;
    if (const std::optional<nlohmann::json> attributes = store.attributes(key)) {
      record = origin_of(*attributes);
      record["bytes"] = store.bytes(key);
    }
    found.push_back(std::move(record));
    tick();
  }
  const std::string text = found.dump();
  for (const auto& part : world.all_gather(std::as_bytes(std::span(text)))) {
    const char* const begin = reinterpret_cast<const char*>(part.data());
    for (const nlohmann::json& record : nlohmann::json::parse(begin, begin + part.size())) {
      const int block = static_cast<int>(state.done.size());
      state.done.push_back(!record.is_null());
      if (record.is_null()) continue;
      learn_origin(recipe, record, state);
      store.expect(block_key(recipe.name, block), record["bytes"].get<std::uint64_t>());
    }
  }
  return state;
}

}  // namespace

int RecipeState::missing() const { return static_cast<int>(std::ranges::count(done, false)); }

int RecipeState::first_missing() const {
  return static_cast<int>(std::ranges::find(done, false) - done.begin());
}

int RecipeState::last_missing() const {
  const auto found = std::find(done.rbegin(), done.rend(), false);
  return static_cast<int>(done.rend() - found) - 1;
}

RecipeState inspect_recipe(const Recipe& recipe, int blocks, int shards, RunStore& store,
                           Communicator& world, const std::function<void()>& tick) {
  const bool in_order = recipe.needs.streams();
  for (;;) {
    RecipeState state = look_at_blocks(recipe, blocks, store, world, tick);
    state.decides = shards > 0 && recipe.needs.decision;
    if (state.decides) look_at_decision(recipe, store, world, state);
    if (state.missing() == 0 || shards == 0) return state;
    state.snapshot = find_snapshot(recipe, state.first_missing(), shards, store, world);
    // What is run forward is read whole anyway: better now, where it can be made again, than in the middle.
    std::vector<std::string> forward;
    for (int block = state.snapshot; in_order && block < state.last_missing(); ++block) {
      if (state.done[static_cast<std::size_t>(block)])
        forward.push_back(block_key(recipe.name, block));
    }
    if (remove_damaged(forward, store, world, tick) == 0) return state;
  }
}

bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  std::vector<RecipeState> states) {
  if (!make_from_gradients(schedule, recipes, states)) return false;
  std::vector<nlohmann::json> decisions(recipes.size());
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!recipes[r].needs.decision) continue;
    decisions[r] = states[r].decision ? *states[r].decision : decide(schedule, recipes[r], {});
    const bool stop = schedule.monitor.stop_requested();
    if (schedule.mesh.world().all_reduce_max(stop ? 1 : 0) == 1) return false;
  }

  Handover handover(schedule.mesh, schedule.backend, schedule.monitor);
  schedule.monitor.on_tick([&] { handover.progress(); });
  std::vector<std::size_t> unfinished;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (states[r].missing() > 0) unfinished.push_back(r);
  }
  const int blocks = static_cast<int>(schedule.model.config().blocks);
  FinishedRecipes ready(schedule.mesh, blocks, recipes, unfinished, schedule.store,
                        [&] { schedule.monitor.tick(); });
  bool finished = true;
  for (const std::size_t r : unfinished) {
    if (finished && schedule.on_finished) finished = schedule.on_finished(ready.take());
    RecipeWalk walk(schedule, handover, recipes[r], recipes, states[r], decisions[r]);
    if (finished) {
      finished = walk.run();
    } else {
      walk.skip();
    }
    ready.tell(r, finished);
  }
  handover.finish();
  {
    const Watchdog::Waiting waiting(&schedule.monitor.watchdog());
    ready.finish();
  }
  schedule.monitor.on_tick(nullptr);
  return finished;
}

}  // namespace roundhouse
