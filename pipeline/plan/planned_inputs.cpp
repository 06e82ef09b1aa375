#include "pipeline/plan/planned_inputs.h"

#include <cctype>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/quote.h"
#include "model/synthetic.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/schedule/planner.h"
#include "pipeline/schedule/recipe_failure.h"
#include "stages/store/run_store.h"

namespace roundhouse {

namespace fs = std::filesystem;
using nlohmann::json;

ModelConfig planned_model(const fs::path& folder, const std::string& like, std::string& name) {
  std::error_code error;
  if (!like.empty()) {
    name = like + " (its shape)";
    return shape_like(like);
  }
  if (fs::exists(folder / "config.json", error)) {
    name = folder.string();
    return read_model_config(folder);
  }
  const fs::path last = folder.has_filename() ? folder.filename() : folder.parent_path().filename();
  std::string lower = last.string();
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::string best;
  for (const std::string& shape : known_shapes()) {
    if (lower.find(shape) != lower.npos && shape.size() > best.size()) best = shape;
  }
  if (best.empty()) {
    throw InputError(
        "there is no file " + in_quotes((folder / "config.json").string()) +
        ", and the folder is not called like a published model; --like NAME plans for one: " +
        fmt::format("{}", fmt::join(known_shapes(), ", ")));
  }
  name = best + " (its shape, since there is no " + (folder / "config.json").string() + ")";
  return shape_like(best);
}

std::vector<RecipeState> states_on_disk(const RunConfig& config, int blocks) {
  std::vector<RecipeState> states = fresh_states(config.recipes, blocks);
  const auto there = [&](const std::string& key) {
    std::error_code error;
    return fs::exists(config.run / (key + ".h5"), error);
  };
  if (!fs::is_directory(config.run) || !other_settings(config).empty()) return states;
  Hdf5Store store(config.run);
  for (std::size_t r = 0; r < states.size(); ++r) {
    const Recipe& recipe = config.recipes[r];
    states[r].failure = find_failure(recipe.name, store);
    for (int block = 0; block < recipe.units(blocks); ++block)
      states[r].done[block] = there(block_key(recipe.name, block));
    if (recipe.needs.decision && there(decision_key(recipe.name)))
      states[r].decision = json::object();
    if (!states[r].to_do() || !recipe.needs.streams()) continue;
    for (int place = states[r].first_missing(); place > 0 && states[r].snapshot == 0; --place) {
      bool whole = true;
      for (int shard = 0; whole && shard < calibration_set(config, recipe.calibration).shards;
           ++shard) {
        whole =
            (!recipe.needs.quantized_stream || there(snapshot_key(recipe.name, place, shard))) &&
            (!recipe.needs.full_precision_stream ||
             there(shared_snapshot_key(recipe.calibration, place, shard)));
      }
      if (whole) states[r].snapshot = place;
    }
  }
  return states;
}

}  // namespace roundhouse
