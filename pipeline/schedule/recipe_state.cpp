#include "pipeline/schedule/recipe_state.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "comm/together.h"
#include "comm/tree_sum.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/snapshots.h"
#include "pipeline/schedule/unit.h"

namespace roundhouse {
namespace {

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
  if (const auto decision = record[kDecidedAs].get<std::string>(); !decision.empty()) {
    state.decided_as.insert(decision);
  }
}

nlohmann::json origin_of(const nlohmann::json& attributes) {
  return {{kMadeOf, attributes.value(kMadeOf, nlohmann::json::object())},
          {kComputedBy, attributes.value(kComputedBy, "")},
          {kDecidedAs, attributes.value(kDecidedAs, "")}};
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

// Rank 0 reads, all ranks know.
void look_at_failure(const Recipe& recipe, RunStore& store, Communicator& world,
                     RecipeState& state) {
  nlohmann::json found;
  if (world.rank() == 0) {
    if (const std::optional<RecipeFailure> failure = find_failure(recipe.name, store)) {
      found = origin_of(failure->attributes);
      found["block"] = failure->block;
      found["outside"] = failure->outside;
      found["reason"] = failure->reason;
    }
  }
  found = nlohmann::json::parse(share(world, found.dump()));
  if (found.is_null()) return;
  learn_origin(recipe, found, state);
  state.failure = RecipeFailure{.block = found["block"].get<int>(),
                                .outside = found["outside"].get<std::vector<std::string>>(),
                                .reason = found["reason"].get<std::string>()};
}

// What a block's gradients were made into, in place of the block. Rank 0 reads, all ranks know.
void look_at_statistics(const Recipe& recipe, int blocks, RunStore& store, Communicator& world,
                        RecipeState& state) {
  nlohmann::json found = nlohmann::json::array();
  for (int block = 0; world.rank() == 0 && block < blocks; ++block) {
    const std::optional<Record> record = store.load(statistics_key(recipe.name, block));
    nlohmann::json& of_block = found.emplace_back();
    if (!record) continue;
    of_block = origin_of(record->attributes);
    of_block[kStatistics] = record->attributes.at(kStatistics);
  }
  found = nlohmann::json::parse(share(world, found.dump()));
  for (nlohmann::json& of_block : found) {
    if (!of_block.is_null()) learn_origin(recipe, of_block, state);
    state.statistics.push_back(of_block.is_null() ? nlohmann::json()
                                                  : std::move(of_block[kStatistics]));
  }
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
    check_decision(recipe, state);
    if (state.decides && !state.decision && recipe.needs.gradients &&
        recipe.needs.gradients->use == Needs::Gradients::Use::kStatistics) {
      look_at_statistics(recipe, blocks, store, world, state);
    }
    if (shards > 0) look_at_failure(recipe, store, world, state);
    if (!state.to_do() || shards == 0) return state;
    state.snapshot = find_snapshot(recipe, state.first_missing(), shards, store, world);
    // What is run forward is read whole anyway: better now, where it can be made again, than in the middle.
    std::vector<std::string> forward;
    for (int block = state.snapshot; in_order && block < state.last_missing(); ++block) {
      if (state.done[block]) forward.push_back(block_key(recipe.name, block));
    }
    if (remove_damaged(forward, store, world, tick) == 0) return state;
  }
}

}  // namespace roundhouse
