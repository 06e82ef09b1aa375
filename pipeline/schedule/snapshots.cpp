#include "pipeline/schedule/snapshots.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <set>
#include <span>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "comm/together.h"

namespace roundhouse {
namespace {

constexpr std::string_view kRecipes = "recipes/";
constexpr std::string_view kActivations = "/activations/";
constexpr std::string_view kAfter = "after-";

std::string folder_of(const std::string& recipe) {
  return std::string(kRecipes) + recipe + "/activations";
}

// Blocks before a snapshot's key, from "after-0008" in it; 0: it is none.
int place_of(const std::string& key) {
  const std::size_t at = key.rfind(kAfter);
  int place = 0;
  if (at != key.npos)
    std::from_chars(key.data() + at + kAfter.size(), key.data() + key.size(), place);
  return place;
}

std::set<int> places_in(const std::string& folder, RunStore& store) {
  std::set<int> places;
  for (const std::string& key : store.keys(folder)) {
    const int place = place_of(key);
    if (place > 0 && key.starts_with(folder + "/" + std::string(kAfter))) places.insert(place);
  }
  return places;
}

// Of one shard: which record holds which stream.
struct Part {
  std::string key;
  std::string_view stream;  // the tensor's name
  Activations* activations;
};
std::vector<Part> parts_of(const Recipe& recipe, int place, int shard,
                           const StreamActivations& activations) {
  return {{snapshot_key(recipe.name, place, shard), "residual", activations.quantized},
          {shared_snapshot_key(recipe.calibration, place, shard), "original",
           activations.full_precision}};
}

}  // namespace

void SnapshotTiming::block_done(double seconds, double forward_seconds) {
  since_ += seconds;
  lost_ += std::min(seconds, forward_seconds);
}

bool SnapshotTiming::due(double bytes) const {
  return between_ > 0 && lost_ * since_ / (2 * between_) >= bytes / bytes_per_second_;
}

void SnapshotTiming::written(double bytes, double seconds) {
  restart();
  if (bytes > 0 && seconds > 0) bytes_per_second_ = bytes / seconds;
}

Record record_of_shard(std::string_view tensor, Activations& activations, int shard) {
  HostTensor rows(activations.type(), {activations.tokens(shard), activations.cols()});
  std::ranges::copy(activations.bytes(shard), rows.bytes().begin());
  Record record;
  record.tensors.emplace(tensor, std::move(rows));
  return record;
}

void load_shard(const std::string& key, std::string_view tensor, Activations& activations,
                int shard, RunStore& store) {
  const auto record = store.load(key);
  if (!record) {
    throw Error(key + ": was there a moment ago and is gone or damaged; start the run again");
  }
  const auto found = record->tensors.find(std::string(tensor));
  const std::span<std::byte> room = activations.bytes(shard);
  if (found == record->tensors.end() || found->second.bytes().size() != room.size()) {
    throw Error(key + ": does not fit this run; remove the file and start the run again");
  }
  std::ranges::copy(found->second.bytes(), room.begin());
}

bool all_whole(const std::vector<std::string>& keys, RunStore& store, Communicator& world) {
  const PartRange mine = parts_of_rank(static_cast<int>(keys.size()), world.rank(), world.size());
  nlohmann::json lengths = nlohmann::json::object();
  bool whole = true;
  for (int i = mine.begin; i < mine.end; ++i) {
    const std::string& key = keys[i];
    const bool there = store.whole(key);
    if (!there) store.remove(key);  // a damaged one would stand in the way
    whole = whole && there;
    if (whole) lengths[key] = store.bytes(key);
  }
  const std::string text = (whole ? lengths : nlohmann::json()).dump();
  for (const auto& part : world.all_gather(std::as_bytes(std::span(text)))) {
    const char* const begin = reinterpret_cast<const char*>(part.data());
    const nlohmann::json theirs = nlohmann::json::parse(begin, begin + part.size());
    whole = whole && !theirs.is_null();
    if (theirs.is_null()) continue;
    for (const auto& [key, bytes] : theirs.items()) store.expect(key, bytes.get<std::uint64_t>());
  }
  return whole;
}

int find_snapshot(const Recipe& recipe, int first_missing, int shards, RunStore& store,
                  Communicator& world) {
  if (!recipe.needs.streams()) return 0;
  std::set<int> listed;
  if (world.rank() == 0) {
    listed = places_in(folder_of(recipe.name), store);
    // The stream that all share is enough for a method that looks at no other, whoever wrote it.
    if (!recipe.needs.quantized_stream)
      listed.merge(places_in(shared_snapshots(recipe.calibration), store));
  }
  auto candidates =
      nlohmann::json::parse(share(world, nlohmann::json(listed).dump())).get<std::vector<int>>();
  std::ranges::reverse(candidates);
  const PartRange mine = parts_of_rank(shards, world.rank(), world.size());
  for (const int place : candidates) {
    if (place > first_missing) continue;
    std::vector<std::string> keys;
    for (int shard = 0; shard < shards; ++shard) {
      if (recipe.needs.quantized_stream) keys.push_back(snapshot_key(recipe.name, place, shard));
      if (recipe.needs.full_precision_stream)
        keys.push_back(shared_snapshot_key(recipe.calibration, place, shard));
    }
    if (!all_whole(keys, store, world)) continue;
    // A shared one goes with the last recipe that has one of its own there, be it empty.
    for (int shard = mine.begin; shard < mine.end && !recipe.needs.quantized_stream; ++shard) {
      const std::string own = snapshot_key(recipe.name, place, shard);
      if (store.bytes(own) == 0) store.commit(own, Record());
    }
    return place;
  }
  return 0;
}

Snapshots::Snapshots(const Recipe& recipe, const std::vector<Recipe>& all, PartRange shards,
                     RunStore& store, Monitor& monitor)
    : recipe_(recipe), all_(all), shards_(shards), store_(store), monitor_(monitor) {}

void Snapshots::write(int blocks_done, const StreamActivations& activations, Communicator& team) {
  for (int shard = shards_.begin; shard < shards_.end; ++shard) {
    for (const Part& part : parts_of(recipe_, blocks_done, shard, activations)) {
      // The recipe's own says that it uses the shared one, so it comes first, and always.
      const bool shared = part.stream == "original";
      if (shared && (!part.activations || store_.bytes(part.key) > 0)) continue;
      const Record record =
          part.activations ? record_of_shard(part.stream, *part.activations, shard) : Record();
      store_.commit(part.key, record);
    }
    monitor_.tick();
  }
  team.barrier();
  // Another lane may have removed a shared one before it could see that this recipe uses it.
  for (int shard = shards_.begin; shard < shards_.end; ++shard) {
    for (const Part& part : parts_of(recipe_, blocks_done, shard, activations)) {
      if (part.activations && store_.bytes(part.key) == 0)
        store_.commit(part.key, record_of_shard(part.stream, *part.activations, shard));
    }
  }
  team.barrier();
  for (const int place : places_in(folder_of(recipe_.name), store_)) {
    if (place < blocks_done) remove(place, shards_);
  }
}

void Snapshots::load(int blocks_done, const StreamActivations& activations) {
  for (int shard = shards_.begin; shard < shards_.end; ++shard) {
    for (const Part& part : parts_of(recipe_, blocks_done, shard, activations)) {
      if (part.activations) load_shard(part.key, part.stream, *part.activations, shard, store_);
    }
    monitor_.tick();
  }
}

void Snapshots::remove_all(int shards) {
  for (const int place : places_in(folder_of(recipe_.name), store_)) remove(place, {0, shards});
}

// Another stage may begin to use the shared one at this very moment: its snapshot is then incomplete, and not used.
void Snapshots::remove(int place, PartRange shards) {
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    store_.remove(snapshot_key(recipe_.name, place, shard));
    const bool used = std::ranges::any_of(all_, [&](const Recipe& other) {
      return store_.bytes(snapshot_key(other.name, place, shard)) > 0 &&
             other.needs.full_precision_stream && other.calibration == recipe_.calibration;
    });
    if (!used) store_.remove(shared_snapshot_key(recipe_.calibration, place, shard));
  }
}

void remove_unused_snapshots(const std::vector<std::string>& unfinished, RunStore& store) {
  std::set<int> used;
  for (const std::string& recipe : unfinished) used.merge(places_in(folder_of(recipe), store));
  for (const std::string& key : store.keys("recipes")) {
    const std::size_t end = key.find(kActivations);
    if (end == key.npos) continue;
    const std::string recipe = key.substr(kRecipes.size(), end - kRecipes.size());
    if (std::ranges::find(unfinished, recipe) == unfinished.end()) store.remove(key);
  }
  for (const std::string& key : store.keys("activations")) {
    if (!used.contains(place_of(key))) store.remove(key);
  }
}

}  // namespace roundhouse
