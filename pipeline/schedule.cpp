#include "pipeline/schedule.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "model/weight_prefetch.h"
#include "pipeline/finished_recipes.h"
#include "pipeline/handover.h"
#include "stages/quantize/block_record.h"
#include "stages/quantize/method.h"
#include "stages/quantize/quantized_weights.h"

namespace roundhouse {
namespace {

// Attributes of a block's record besides those of to_record().
constexpr const char* kMadeOf = "made_of";          // tensor name -> hash of what it held
constexpr const char* kComputedBy = "computed_by";  // Backend::computes_as()

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One stage's walk through one recipe.
class RecipeWalk {
 public:
  RecipeWalk(Schedule& schedule, Handover& handover, const Recipe& recipe, const RecipeState& state)
      : s_(schedule),
        handover_(handover),
        recipe_(recipe),
        state_(state),
        method_(make_method(recipe)),
        streams_(method_->streams()),
        prefetch_(schedule.model.checkpoint()) {}

  // Precondition: something is missing. False: stopped early.
  bool run() { return streams_.any() ? run_in_order() : run_independent(); }

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
  bool in_order() const { return streams_.any(); }
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

    StreamActivations activations = make_activations();
    if (receives()) {
      s_.monitor.phase(recipe_.name + ": waiting for the stage before");
      if (!handover_.receive(activations, shards())) return stopped();
    } else if (begin > 0) {
      load_snapshot(activations);
    } else {
      embed(activations);
    }
    for (int block = begin; block < end; ++block) {
      if (stop()) return stopped();
      if (state_.done[static_cast<std::size_t>(block)]) {
        run_committed(block, activations);
      } else {
        make_unit(block, activations);
      }
      write_snapshot(block + 1, activations);
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
    return {.quantized = make(streams_.quantized), .full_precision = make(streams_.full_precision)};
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

  BlockTask task(int block, BlockWeights& weights, const StreamActivations& activations) {
    return {.backend = s_.backend,
            .team = s_.mesh.team(),
            .device_team = s_.mesh.device_team(),
            .checkpoint = s_.model.checkpoint(),
            .shape = s_.shape,
            .block = block,
            .weights = weights,
            .samples = s_.samples,
            .residual = activations.quantized.get(),
            .original = activations.full_precision.get(),
            .budget = s_.budget,
            .saved_activation_bytes = s_.saved_activation_bytes,
            .monitor = s_.monitor};
  }

  void make_unit(int block, const StreamActivations& activations) {
    const auto start = std::chrono::steady_clock::now();
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block));
    BlockWeights weights = s_.shape.load(s_.model.checkpoint(), block, s_.backend);
    if (block + 1 < own().end) prefetch_.start(s_.shape, block + 1);
    const double load_seconds = seconds_since(start);
    BlockTask block_task = task(block, weights, activations);
    QuantizedBlock result = method_->quantize(block_task);
    if (s_.mesh.team().rank() != 0) return;
    // Seconds are for the journal; the record has the same bytes whenever and on however many ranks it is made.
    nlohmann::json phases = std::exchange(result.record["phases"], nullptr);
    result.record.erase("phases");
    const auto commit_start = std::chrono::steady_clock::now();
    Record record = to_record(result);
    record.attributes[kMadeOf] = contents_of_block(s_.model, block);
    record.attributes[kComputedBy] = s_.backend.computes_as();
    s_.store.commit(block_key(recipe_.name, block), record);
    phases["load"] = load_seconds;
    phases["commit"] = seconds_since(commit_start);
    result.record["phases"] = std::move(phases);
    s_.on_unit(recipe_, result, seconds_since(start));
  }

  // Each stream through its own weights of the block.
  void run_committed(int block, const StreamActivations& activations) {
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block) +
                     " (done before: forward only)");
    const auto forward = [&](Activations* stream, const std::function<BlockWeights()>& load) {
      if (!stream) return;
      BlockWeights weights = load();
      run_forward(task(block, weights, activations), weights, *stream);
    };
    forward(activations.quantized.get(), [&] {
      return load_quantized_weights(s_.model, s_.shape, s_.store, recipe_.name, block, s_.backend);
    });
    forward(activations.full_precision.get(),
            [&] { return s_.shape.load(s_.model.checkpoint(), block, s_.backend); });
  }

  void write_snapshot(int blocks_done, const StreamActivations& activations) {
    const int every = s_.snapshot_every;
    if (every <= 0 || blocks_done % every != 0 || blocks_done > last_block()) return;
    s_.monitor.phase(recipe_.name + ": snapshot after block " + std::to_string(blocks_done - 1));
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      Record record;
      for (const auto& stream : activations.all()) {
        if (!stream.activations) continue;
        HostTensor tensor(stream.activations->type(),
                          {stream.activations->tokens(shard), stream.activations->cols()});
        std::ranges::copy(stream.activations->bytes(shard), tensor.bytes().begin());
        record.tensors.emplace(stream.name, std::move(tensor));
      }
      s_.store.commit(snapshot_key(recipe_.name, blocks_done, shard), record);
      s_.monitor.tick();
    }
    s_.mesh.team().barrier();
    // The one before stays until the next: two generations.
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      if (blocks_done > 2 * every)
        s_.store.remove(snapshot_key(recipe_.name, blocks_done - 2 * every, shard));
    }
  }

  void load_snapshot(const StreamActivations& activations) {
    s_.monitor.phase(recipe_.name + ": reading the snapshot after block " +
                     std::to_string(first_block() - 1));
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      const std::string key = snapshot_key(recipe_.name, first_block(), shard);
      const auto record = s_.store.load(key);
      if (!record)
        throw Error(key + ": was there a moment ago and is gone or damaged; start the run again");
      for (const auto& stream : activations.all()) {
        if (!stream.activations) continue;
        const auto found = record->tensors.find(std::string(stream.name));
        const std::span<std::byte> room = stream.activations->bytes(shard);
        if (found == record->tensors.end() || found->second.bytes().size() != room.size()) {
          throw Error(key + ": does not fit this run; remove the file and start the run again");
        }
        std::ranges::copy(found->second.bytes(), room.begin());
      }
      s_.monitor.tick();
    }
  }

  Schedule& s_;
  Handover& handover_;
  const Recipe& recipe_;
  const RecipeState& state_;
  std::unique_ptr<Method> method_;
  Streams streams_;
  WeightPrefetch prefetch_;
};

}  // namespace

int RecipeState::missing() const { return static_cast<int>(std::ranges::count(done, false)); }

int RecipeState::first_missing() const {
  return static_cast<int>(std::ranges::find(done, false) - done.begin());
}

int RecipeState::last_missing() const {
  const auto found = std::find(done.rbegin(), done.rend(), false);
  return static_cast<int>(done.rend() - found) - 1;
}

RecipeState inspect_recipe(const Recipe& recipe, int blocks, int shards, int snapshot_every,
                           RunStore& store, Communicator& world) {
  // Each rank reads its share; what it found counts for all.
  RecipeState state;
  const auto all_have = [&](int count, const std::function<std::string(int)>& key,
                            bool with_sources) {
    const PartRange mine = parts_of_rank(count, world.rank(), world.size());
    nlohmann::json found = nlohmann::json::array();
    for (int i = mine.begin; i < mine.end; ++i) {
      const std::optional<nlohmann::json> attributes = store.attributes(key(i));
      nlohmann::json sources;
      if (attributes) sources = nlohmann::json::object();
      if (attributes && with_sources) {
        sources[kMadeOf] = attributes->value(kMadeOf, nlohmann::json::object());
        sources[kComputedBy] = attributes->value(kComputedBy, "");
      }
      found.push_back(std::move(sources));
    }
    const std::string text = found.dump();
    std::vector<bool> result;
    for (const auto& part : world.all_gather(std::as_bytes(std::span(text)))) {
      const char* const begin = reinterpret_cast<const char*>(part.data());
      for (const nlohmann::json& record : nlohmann::json::parse(begin, begin + part.size())) {
        result.push_back(!record.is_null());
        if (record.is_null() || !with_sources) continue;
        for (const auto& [tensor, hash] : record[kMadeOf].items())
          state.made_of[tensor] = hash.get<std::string>();
        state.computed_by.insert(record[kComputedBy].get<std::string>());
      }
    }
    return result;
  };

  state.done = all_have(
      blocks, [&](int block) { return block_key(recipe.name, block); }, true);
  if (state.missing() == 0 || snapshot_every <= 0) return state;
  const int newest = state.first_missing() / snapshot_every * snapshot_every;
  for (int after = newest; after > 0 && state.snapshot == 0; after -= snapshot_every) {
    const auto found = all_have(
        shards, [&](int shard) { return snapshot_key(recipe.name, after, shard); }, false);
    if (std::ranges::find(found, false) == found.end()) state.snapshot = after;
  }
  return state;
}

bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  const std::vector<RecipeState>& states) {
  Handover handover(schedule.mesh, schedule.backend, schedule.monitor);
  schedule.monitor.on_tick([&] { handover.progress(); });
  std::vector<std::size_t> unfinished;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (states[r].missing() > 0) unfinished.push_back(r);
  }
  const int blocks = static_cast<int>(schedule.model.config().blocks);
  FinishedRecipes ready(schedule.mesh, blocks, recipes, unfinished, schedule.store);
  bool finished = true;
  for (const std::size_t r : unfinished) {
    if (finished && schedule.on_finished) finished = schedule.on_finished(ready.take());
    RecipeWalk walk(schedule, handover, recipes[r], states[r]);
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
