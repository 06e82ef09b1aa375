#include "pipeline/schedule/wave_walk.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <utility>

#include <fmt/format.h>

#include "base/numerical_error.h"
#include "model/block/model_units.h"
#include "pipeline/schedule/stored_progress.h"
#include "pipeline/schedule/unit.h"
#include "stages/flow/load_shared.h"
#include "stages/flow/micro_batch.h"
#include "stages/store/quantized_weights.h"

namespace roundhouse {

WaveWalk::WaveWalk(Schedule& schedule, const Mesh& mesh, Handover& handover, const Wave& wave,
                   const std::vector<Recipe>& all, const std::vector<RecipeState>& states)
    : s_(schedule),
      mesh_(mesh),
      handover_(handover),
      own_(own_units(all, wave, mesh.blocks(), blocks())),
      samples_(schedule.samples_of(all[wave.front()])),
      timing_(schedule.interruption_hours),
      prefetch_(schedule.model.checkpoint()) {
  for (const std::size_t number : wave) {
    const Recipe& recipe = all[number];
    members_.push_back({.number = number,
                        .recipe = recipe,
                        .state = states[number],
                        .method = schedule.method_of(recipe),
                        .way = way_through(recipe, states[number], own()),
                        .snapshots = Snapshots(recipe, all, shards(), s_.store, s_.monitor),
                        .progress_timing = SnapshotTiming(schedule.interruption_hours)});
    if (!recipe.include.empty()) members_.back().outer = schedule.decoder.outer(recipe.include);
  }
}

PartRange WaveWalk::shards() const {
  return samples_ ? parts_of_rank(samples_->shards(), mesh_.team().rank(), mesh_.team().size())
                  : PartRange{0, 0};
}

WaveWalk::Members WaveWalk::members(const std::function<bool(const Member&)>& which) {
  Members chosen;
  for (Member& member : members_) {
    if (which(member)) chosen.push_back(&member);
  }
  return chosen;
}

std::vector<bool> WaveWalk::made() const {
  std::vector<bool> made;
  for (const Member& member : members_) made.push_back(!member.failed);
  return made;
}

bool WaveWalk::run() {
  bool going = receive();
  for (int block = own().begin; going && block < own().end; ++block) {
    enter(block);
    going = pass(block);
  }
  if (going) {
    hand_over();
  } else if (const Members expected = going_on(); !expected.empty()) {
    handover_.send_stop(expected.size());
  }
  return going;
}

void WaveWalk::skip() {
  (void)receive();
  if (const Members expected = going_on(); !expected.empty()) handover_.send_stop(expected.size());
}

bool WaveWalk::receive() {
  const Members expected = arriving();
  if (expected.empty()) return true;
  s_.monitor.phase(expected.front()->recipe.name + ": waiting for the stage before");
  const auto start = std::chrono::steady_clock::now();
  const auto come = handover_.receive_header(expected.size());
  if (!come) return false;
  Members arrived;
  std::vector<Activations*> streams;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    Member& member = *expected[i];
    member.failed = !(*come)[i];
    if (member.failed) continue;
    arrived.push_back(&member);
    if (member.recipe.needs.quantized_stream)
      streams.push_back((member.quantized = make_activations()).get());
    if (member.way.original && !original_) original_ = make_activations();
  }
  if (original_) streams.push_back(original_.get());
  handover_.receive(streams, shards());
  if (!arrived.empty()) report_arrival(arrived, streams.size(), seconds_since(start));
  return true;
}

// What this stage waited for, apart from what it works; and the bytes that came, for all ranks of the team, from that of the stage before.
void WaveWalk::report_arrival(const Members& arrived, std::size_t streams, double seconds) {
  if (mesh_.team().rank() != 0) return;
  const std::int64_t bytes = static_cast<std::int64_t>(streams) * samples_->count() *
                             samples_->length() * s_.decoder.hidden_size() *
                             static_cast<std::int64_t>(size_of(s_.backend.activation_type()));
  nlohmann::json event = {{"event", "handover"},
                          {"recipe", arrived.front()->recipe.name},
                          {"block", own().begin},
                          {"stage", mesh_.stage()},
                          {"ranks", mesh_.team().size()},
                          {"waited_seconds", seconds},
                          {"on_its_way_seconds", handover_.seconds_on_its_way()},
                          {"bytes", bytes}};
  for (const Member* member : arrived) event["recipes"].push_back(member->recipe.name);
  s_.monitor.event(event);
}

// As sent: each recipe's own, then the one that they share.
void WaveWalk::hand_over() {
  const Members expected = going_on();
  if (expected.empty()) return;
  std::vector<bool> come;
  std::vector<std::unique_ptr<Activations>> streams;
  bool original = false;
  for (Member* member : expected) {
    come.push_back(!member->failed);
    if (member->failed) continue;
    if (member->quantized) streams.push_back(std::move(member->quantized));
    original = original || member->way.original;
  }
  if (original) streams.push_back(std::move(original_));
  handover_.send(come, std::move(streams), shards());
}

std::unique_ptr<Activations> WaveWalk::make_activations() {
  auto activations = std::make_unique<Activations>(s_.budget, s_.backend.activation_type(),
                                                   s_.decoder.hidden_size());
  for (int shard = shards().begin; shard < shards().end; ++shard) {
    const PartRange range = samples_->samples_of_shard(shard);
    activations->reserve(shard, (range.end - range.begin) * samples_->length());
  }
  return activations;
}

void WaveWalk::enter(int block) {
  std::vector<Activations*> embedded;
  for (Member* member : at_work(block)) {
    if (!member->way.in_order || member->way.begin != block || member->way.arrives) continue;
    if (member->recipe.needs.quantized_stream) member->quantized = make_activations();
    // Whoever has come so far has it along.
    const bool brings_original = member->way.original && !original_;
    if (brings_original) original_ = make_activations();
    const StreamActivations streams{.quantized = member->quantized.get(),
                                    .full_precision = brings_original ? original_.get() : nullptr};
    if (block > 0) {
      s_.monitor.phase(
          fmt::format("{}: reading the snapshot after block {}", member->recipe.name, block - 1));
      member->snapshots.load(block, streams);
      continue;
    }
    for (const auto& stream : streams.all()) {
      if (stream.activations) embedded.push_back(stream.activations);
    }
  }
  if (!embedded.empty()) embed(embedded);
}

void WaveWalk::embed(const std::vector<Activations*>& streams) {
  s_.monitor.phase(members_.front().recipe.name + ": embedding");
  for (int shard = shards().begin; shard < shards().end; ++shard)
    embed_shard(s_.model, *samples_, shard, streams, s_.backend, s_.monitor);
}

bool WaveWalk::pass(int block) {
  const Members working = at_work(block);
  if (working.empty()) return true;
  const auto makes = [&](const Member* member) { return !member->done(block); };
  const auto makes_original = [&](const Member* member) {
    return member->way.original && makes(member);
  };
  const bool by_a_method = std::ranges::any_of(working, makes_original);
  Members makers;
  std::ranges::copy_if(working, std::back_inserter(makers), makes);
  made_in_ = nullptr;
  if (!by_a_method && !carriers(block).empty()) {
    if (stop()) return false;
    pass_original(block);
  }
  for (Member* member : working) {
    if (stop()) return false;
    const auto start = std::chrono::steady_clock::now();
    if (makes(member)) {
      const auto of_the_method = [&](const Member* other) {
        return other != member && other->recipe.method == member->recipe.method;
      };
      make_unit(*member, block, std::ranges::any_of(makers, of_the_method),
                member == makers.back());
      if (member->failed) continue;
    } else {
      replay(*member, block);
    }
    const double seconds = seconds_since(start);
    timing_.block_done(seconds, makes(member) ? seconds * forward_share(*member, block) : seconds);
  }
  // Those who were to make it are gone.
  if (made_in_ == nullptr && !carriers(block).empty()) pass_original(block);
  weights_.reset();
  shared_.clear();
  move_on(block);
  return true;
}

void WaveWalk::move_on(int block) {
  if (made_in_ != nullptr && made_in_ == original_output_.get())
    std::swap(original_, original_output_);
  write_snapshots(block + 1);
  for (Member* member : at_work(block)) {
    if (!member->way.finishes_at(block)) continue;
    member->quantized.reset();
    finish_writing(s_);  // what the last of the snapshots is still good for
    if (mesh_.team().rank() == 0) member->snapshots.remove_all(samples_->shards());
  }
  const Members further = members([&](const Member& member) {
    return member.carries_original(block) && !member.way.finishes_at(block);
  });
  if (further.empty()) original_.reset();
  if (further.size() < 2 || block + 1 == own().end) original_output_.reset();
}

bool WaveWalk::stop() {
  std::uint8_t wish = s_.monitor.stop_requested() ? 1 : 0;
  mesh_.team().broadcast(std::as_writable_bytes(std::span(&wish, 1)), 0);
  return wish != 0;
}

BlockSite WaveWalk::site(int block, const DecoderBlock& decoder) const {
  return {.backend = s_.backend,
          .team = mesh_.team(),
          .device_team = mesh_.device_team(),
          .decoder = decoder,
          .block = block,
          .samples = samples_,
          .monitor = s_.monitor};
}

std::optional<double> WaveWalk::load_weights(int block) {
  if (weights_) return std::nullopt;
  const auto start = std::chrono::steady_clock::now();
  weights_ = load_shared(s_.model.checkpoint(), site(block, s_.decoder));
  if (block + 1 < std::min(own().end, blocks())) {
    prefetch_.start(s_.decoder, block + 1, part_read_by_rank(mesh_.team(), s_.backend));
  }
  return seconds_since(start);
}

void WaveWalk::make_unit(Member& member, int block, bool others, bool last) {
  const auto start = std::chrono::steady_clock::now();
  const bool outside = block >= blocks();
  const DecoderBlock& decoder = outside ? *member.outer : s_.decoder;
  s_.monitor.phase(fmt::format("{} {}", member.recipe.name, unit_name(block, decoder)));
  std::optional<double> load_seconds;
  BlockWeights weights;
  if (outside) {
    weights = decoder.load(s_.model.checkpoint(), block, s_.backend, LoadLinears::kYes);
    load_seconds = seconds_since(start);
  } else {
    load_seconds = load_weights(block);
    weights = last ? std::move(*weights_) : weights_->borrowed();
    if (last) weights_.reset();
  }
  BlockTask task{site(block, decoder),
                 s_.model.checkpoint(),
                 weights,
                 member.quantized.get(),
                 member.way.original ? original_.get() : nullptr,
                 s_.budget,
                 s_.saved_activation_bytes,
                 member.state.decision ? *member.state.decision : nothing_decided_};
  if (member.way.original) {
    task.original_made = made_in_ != nullptr;
    if (!task.original_made && !original_output_ && carriers(block).size() > 1)
      original_output_ = make_activations();
    task.original_output = original_output_.get();
  }
  if (std::exchange(sharing_, member.recipe.method) != member.recipe.method) shared_.clear();
  if (others) task.shared = &shared_;
  StoredProgress progress(member.recipe.name, block, s_.store, mesh_.team(), s_.monitor,
                          member.progress_timing, [&] { return origin_of_block(s_, block); });
  task.progress = &progress;
  try {
    roundhouse::make_unit(s_, member.recipe, *member.method, task, start, load_seconds);
  } catch (const UnquantizableError& error) {  // on all ranks of the team alike
    s_.backend.finish_downloads();
    drop(member, block, error.what());
    return;
  }
  if (member.way.original) made_in_ = &task.output_of_original();
}

void WaveWalk::drop(Member& member, int block, const std::string& why) {
  member.failed = true;
  member.quantized.reset();
  if (mesh_.team().rank() == 0) note_failure(s_, member.number, member.recipe, block, why);
  if (!member.way.in_order) return;
  mesh_.team().barrier();
  if (mesh_.team().rank() == 0) member.snapshots.remove_all(samples_->shards());
}

double WaveWalk::forward_share(const Member& member, int block) const {
  if (!member.way.in_order) return 0;
  // Whatever recipes carry the full-precision stream, it is run forward once.
  const auto carrier = std::ranges::find_if(
      members_, [](const Member& other) { return other.way.original && !other.failed; });
  return s_.forward_share({.kind = Step::Kind::kMake,
                           .recipe = member.number,
                           .block = block,
                           .loads = true,
                           .original = carrier != members_.end() && &*carrier == &member});
}

void WaveWalk::replay(Member& member, int block) {
  s_.monitor.phase(
      fmt::format("{} block {} (done before: forward only)", member.recipe.name, block));
  if (!member.quantized) return;
  BlockWeights weights =
      load_quantized_weights(s_.model, s_.decoder, s_.store, member.recipe.name, block, s_.backend);
  run_forward(site(block, s_.decoder), weights, *member.quantized);
}

void WaveWalk::pass_original(int block) {
  const auto start = std::chrono::steady_clock::now();
  s_.monitor.phase(fmt::format("block {}: forward in full precision", block));
  (void)load_weights(block);
  run_forward(site(block, s_.decoder), *weights_, *original_);
  made_in_ = original_.get();
  const double seconds = seconds_since(start);
  timing_.block_done(seconds, seconds);
}

void WaveWalk::write_snapshots(int blocks_done) {
  const Members writing = members([&](const Member& member) {
    return member.way.in_order && member.at_work(blocks_done - 1) &&
           blocks_done <= member.state.last_missing();
  });
  if (writing.empty()) return;
  const auto streams_of = [&](const Member& member) {
    return StreamActivations{.quantized = member.quantized.get(),
                             .full_precision = member.way.original ? original_.get() : nullptr};
  };
  double bytes = 0;
  std::vector<const Activations*> counted;
  for (const Member* member : writing) {
    for (const auto& stream : streams_of(*member).all()) {
      if (!stream.activations || std::ranges::find(counted, stream.activations) != counted.end())
        continue;
      counted.push_back(stream.activations);
      for (int shard = shards().begin; shard < shards().end; ++shard)
        bytes += static_cast<double>(stream.activations->bytes(shard).size());
    }
  }
  std::uint8_t due = timing_.due(bytes) ? 1 : 0;
  mesh_.team().broadcast(std::as_writable_bytes(std::span(&due, 1)), 0);
  if (due == 0) return;
  s_.monitor.phase(
      fmt::format("{}: snapshot after block {}", writing.front()->recipe.name, blocks_done - 1));
  const auto start = std::chrono::steady_clock::now();
  finish_writing(
      s_);  // older snapshots go, from which a block that is not there could be made again
  for (Member* member : writing)
    member->snapshots.write(blocks_done, streams_of(*member), mesh_.team());
  timing_.written(bytes, seconds_since(start));
}

}  // namespace roundhouse
