#include "pipeline/schedule.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "comm/watchdog.h"
#include "stages/quantize/block_record.h"
#include "stages/quantize/method.h"
#include "stages/quantize/quantized_weights.h"

namespace roundhouse {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Activations on their way between stages. At most one set at a time: it is a second copy of a stage's activations.
//
// Each set is announced by one number: kActivations, or kStopped when the stage before ends early; after that nothing comes.
class Handover {
 public:
  Handover(const Mesh& mesh, JobMonitor& monitor) : mesh_(mesh), monitor_(monitor) {}

  void send(std::unique_ptr<Activations> activations, PartRange shards) {
    finish();
    sending_ = std::move(activations);
    header_ = kActivations;
    std::vector<Send> sends{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}};
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      sends.push_back({sending_->bytes(shard), mesh_.next_rank()});
    }
    ticket_ = mesh_.world().start(sends, {});
  }

  void send_stop() {
    if (stop_sent_) return;
    finish();
    stop_sent_ = true;
    header_ = kStopped;
    ticket_ = mesh_.world().start(
        std::vector<Send>{{std::as_bytes(std::span(&header_, 1)), mesh_.next_rank()}}, {});
  }

  // False if the stage before has stopped. `into` has room for the shards.
  bool receive(Activations& into, PartRange shards) {
    if (upstream_stopped_) return false;
    std::int64_t header = 0;
    receive_all({{std::as_writable_bytes(std::span(&header, 1)), mesh_.previous_rank()}});
    upstream_stopped_ = header == kStopped;
    if (upstream_stopped_) return false;
    require(header == kActivations, "a stage received something else than activations");
    std::vector<Receive> receives;
    for (int shard = shards.begin; shard < shards.end; ++shard) {
      receives.push_back({into.bytes(shard), mesh_.previous_rank()});
    }
    receive_all(receives);
    return true;
  }

  void progress() {
    if (ticket_ && ticket_->done()) release();
  }
  void finish() {
    if (ticket_) wait(*ticket_);
    release();
  }

 private:
  static constexpr std::int64_t kActivations = 1;
  static constexpr std::int64_t kStopped = 2;

  void wait(Ticket& ticket) {
    const Watchdog::Waiting waiting(&monitor_.watchdog());
    ticket.wait();
  }
  void receive_all(const std::vector<Receive>& receives) {
    const auto ticket = mesh_.world().start({}, receives);
    wait(*ticket);
  }
  void release() {
    ticket_.reset();
    sending_.reset();
  }

  const Mesh& mesh_;
  JobMonitor& monitor_;
  bool upstream_stopped_ = false;
  bool stop_sent_ = false;
  std::int64_t header_ = 0;
  std::unique_ptr<Activations> sending_;
  std::unique_ptr<Ticket> ticket_;
};

// One stage's walk through one recipe.
class RecipeWalk {
 public:
  RecipeWalk(Schedule& schedule, Handover& handover, const Recipe& recipe, const RecipeState& state)
      : s_(schedule),
        handover_(handover),
        recipe_(recipe),
        state_(state),
        method_(make_method(recipe)) {}

  // False: stopped early.
  bool run() {
    if (state_.missing() == 0) return true;
    return method_->needs_activations() ? run_in_order() : run_independent();
  }

  // In place of run() once this stage has stopped: takes what the stage before still sends (it may not have heard yet)
  // and throws it away, and tells the next one not to wait.
  void skip() {
    if (receives()) {
      auto activations = make_activations();
      handover_.receive(*activations, shards());
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
  bool in_order() const { return state_.missing() > 0 && method_->needs_activations(); }
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
      make_unit(block, nullptr);
    }
    return true;
  }

  bool run_in_order() {
    const int begin = std::max(own().begin, first_block());
    const int end = std::min(own().end, last_block() + 1);
    if (begin >= end) return true;

    auto activations = make_activations();
    if (receives()) {
      s_.monitor.phase(recipe_.name + ": waiting for the stage before");
      if (!handover_.receive(*activations, shards())) return stopped();
    } else if (begin > 0) {
      load_snapshot(*activations);
    } else {
      embed(*activations);
    }
    for (int block = begin; block < end; ++block) {
      if (stop()) return stopped();
      if (state_.done[static_cast<std::size_t>(block)]) {
        run_committed(block, *activations);
      } else {
        make_unit(block, activations.get());
      }
      write_snapshot(block + 1, *activations);
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

  std::unique_ptr<Activations> make_activations() {
    auto activations = std::make_unique<Activations>(s_.budget, s_.backend.activation_type(),
                                                     s_.shape.hidden_size());
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      const PartRange range = s_.samples->samples_of_shard(shard);
      activations->reserve(shard, (range.end - range.begin) * s_.samples->length());
    }
    return activations;
  }

  void embed(Activations& activations) {
    s_.monitor.phase(recipe_.name + ": embedding");
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      const PartRange range = s_.samples->samples_of_shard(shard);
      for (int first = range.begin; first < range.end;
           first += static_cast<int>(s_.samples->micro_batch())) {
        const std::int64_t n = std::min<std::int64_t>(s_.samples->micro_batch(), range.end - first);
        const Tensor rows =
            s_.model.embed(s_.samples->ids(first, n), s_.samples->length(), s_.backend);
        activations.store(shard, (first - range.begin) * s_.samples->length(), rows.view(),
                          s_.backend);
        s_.monitor.tick();
      }
    }
  }

  BlockTask task(int block, BlockWeights& weights, Activations* activations) {
    return {.backend = s_.backend,
            .team = s_.mesh.team(),
            .shape = s_.shape,
            .block = block,
            .weights = weights,
            .samples = s_.samples,
            .residual = activations,
            .budget = s_.budget,
            .monitor = s_.monitor};
  }

  void make_unit(int block, Activations* activations) {
    const auto start = std::chrono::steady_clock::now();
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block));
    BlockWeights weights = s_.shape.load(s_.model.checkpoint(), block, s_.backend);
    BlockTask block_task = task(block, weights, activations);
    QuantizedBlock result = method_->quantize(block_task);
    if (s_.mesh.team().rank() != 0) return;
    // Seconds are for the journal; the record has the same bytes whenever and on however many ranks it is made.
    nlohmann::json time = std::exchange(result.record["time"], nullptr);
    result.record.erase("time");
    const auto commit_start = std::chrono::steady_clock::now();
    s_.store.commit(block_key(recipe_.name, block), to_record(result));
    time["commit"] = seconds_since(commit_start);
    result.record["time"] = std::move(time);
    s_.on_unit(recipe_, result, seconds_since(start));
  }

  void run_committed(int block, Activations& activations) {
    s_.monitor.phase(recipe_.name + " block " + std::to_string(block) +
                     " (done before: forward only)");
    BlockWeights weights =
        load_quantized_weights(s_.model, s_.shape, s_.store, recipe_.name, block, s_.backend);
    BlockTask block_task = task(block, weights, &activations);
    run_forward(block_task);
  }

  void write_snapshot(int blocks_done, Activations& activations) {
    const int every = s_.snapshot_every;
    if (every <= 0 || blocks_done % every != 0 || blocks_done > last_block()) return;
    s_.monitor.phase(recipe_.name + ": snapshot after block " + std::to_string(blocks_done - 1));
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      HostTensor tensor(activations.type(), {activations.tokens(shard), activations.cols()});
      std::ranges::copy(activations.bytes(shard), tensor.bytes().begin());
      Record record;
      record.tensors.emplace("residual", std::move(tensor));
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

  void load_snapshot(Activations& activations) {
    s_.monitor.phase(recipe_.name + ": reading the snapshot after block " +
                     std::to_string(first_block() - 1));
    for (int shard = shards().begin; shard < shards().end; ++shard) {
      const std::string key = snapshot_key(recipe_.name, first_block(), shard);
      const auto record = s_.store.load(key);
      if (!record)
        throw Error(key + ": was there a moment ago and is gone or damaged; start the run again");
      const auto found = record->tensors.find("residual");
      const std::span<std::byte> room = activations.bytes(shard);
      if (found == record->tensors.end() || found->second.bytes().size() != room.size()) {
        throw Error(key + ": does not fit this run; remove the file and start the run again");
      }
      std::ranges::copy(found->second.bytes(), room.begin());
      s_.monitor.tick();
    }
  }

  Schedule& s_;
  Handover& handover_;
  const Recipe& recipe_;
  const RecipeState& state_;
  std::unique_ptr<Method> method_;
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
  const auto all_have = [&](int count, const std::function<std::string(int)>& key) {
    const PartRange mine = parts_of_rank(count, world.rank(), world.size());
    std::vector<std::uint8_t> found;
    for (int i = mine.begin; i < mine.end; ++i) found.push_back(store.has(key(i)) ? 1 : 0);
    std::vector<bool> result;
    for (const auto& part : world.all_gather(std::as_bytes(std::span(found)))) {
      for (const std::byte value : part) result.push_back(value != std::byte{0});
    }
    return result;
  };

  RecipeState state;
  state.done = all_have(blocks, [&](int block) { return block_key(recipe.name, block); });
  if (state.missing() == 0 || snapshot_every <= 0) return state;
  const int newest = state.first_missing() / snapshot_every * snapshot_every;
  for (int after = newest; after > 0 && state.snapshot == 0; after -= snapshot_every) {
    const auto found =
        all_have(shards, [&](int shard) { return snapshot_key(recipe.name, after, shard); });
    if (std::ranges::find(found, false) == found.end()) state.snapshot = after;
  }
  return state;
}

bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  const std::vector<RecipeState>& states) {
  Handover handover(schedule.mesh, schedule.monitor);
  schedule.monitor.on_tick([&] { handover.progress(); });
  bool finished = true;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    RecipeWalk walk(schedule, handover, recipes[r], states[r]);
    if (finished) {
      finished = walk.run();
    } else {
      walk.skip();
    }
  }
  handover.finish();
  schedule.monitor.on_tick(nullptr);
  return finished;
}

}  // namespace roundhouse
