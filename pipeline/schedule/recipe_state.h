// What is there of a recipe, and where its work begins.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/schedule/recipe_failure.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// The state of one recipe in the store. The same on every rank.
struct RecipeState {
  std::vector<bool> done;    // by block
  int snapshot = 0;          // blocks before the newest usable snapshot; 0: start at the embedding
  ContentsByTensor made_of;  // what the done blocks say that they were made of
  std::set<std::string> computed_by;       // Backend::computes_as() of those who made them
  bool decides = false;                    // its method decides for the whole model, which is
  std::optional<nlohmann::json> decision;  // this, if it is there
  std::set<std::string> decided_as;        // which decisions the done blocks were made by
  std::vector<nlohmann::json> statistics;  // that it is to decide by, by block; null: missing
  std::optional<RecipeFailure> failure;    // it is not gone on with
  int missing() const;                     // blocks
  bool to_do() const { return !failure && missing() > 0; }
  bool complete() const { return missing() == 0 && (!decides || decision); }
  int first_missing() const;  // Precondition: missing() > 0
  int last_missing() const;
};

// Collective: ranks share the reading. What one has seen, the others expect to see. shards: of the calibration, for what makes
// blocks. Of blocks that are done only their attributes are read, but for those that are to be run forward, and of snapshots: what is
// damaged of these is removed. 0: nothing is going to be made, and nothing else is looked at. Throws InputError where its records do
// not belong together.
RecipeState inspect_recipe(
    const Recipe& recipe, int blocks, int shards, RunStore& store, Communicator& world,
    const std::function<void()>& tick = [] {});

}  // namespace roundhouse
