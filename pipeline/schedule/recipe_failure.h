// Recipes that cannot be made: of this model and calibration they would end alike at every start. The others go on without them.
//
//   recipes/RECIPE/failed-0003      at this block; "failed-model" where what it decides for the whole model cannot be decided
//
// The record is there before anybody goes on, so that a resume leaves the recipe alone; blocks that were made before stay.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "stages/store/run_store.h"

namespace roundhouse {

struct RecipeFailure {
  static constexpr int kWholeModel = -1;
  int block = kWholeModel;
  std::vector<std::string> outside = {};  // what of kOuterLinears it is instead of a block
  std::string reason;  // "self_attn.o_proj, rows from 0: a group of weights has the range .."
  nlohmann::json attributes =
      nlohmann::json::object();  // of its record: what the model was, and by what it was computed

  std::string place() const;  // unit_name(), or "the whole model"
};

std::string failure_key(const std::string& recipe, int block);
// The first by block; nothing: none is known.
std::optional<RecipeFailure> find_failure(const std::string& recipe, RunStore& store);
// Removes all there are of a recipe; whether there were any.
bool forget_failures(const std::string& recipe, RunStore& store);

// What teams have found of recipes, by number, on the way; share() tells all.
class RecipeFailures {
 public:
  // On one rank of those that found it.
  void add(std::size_t recipe, const std::string& name, RecipeFailure failure, RunStore& store);
  // Collective over `world`: the first failure of each recipe, the same on every rank.
  std::vector<std::pair<std::size_t, RecipeFailure>> share(Communicator& world) const;

 private:
  nlohmann::json found_ = nlohmann::json::array();  // [recipe, block, outside, reason]
};

}  // namespace roundhouse
