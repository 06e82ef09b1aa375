// What a plan looks at on the disk: the model's shape, and what of the run is there already.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "pipeline/schedule/recipe_state.h"

namespace roundhouse {

// The model's folder has config.json, or is called like a published shape, or `like` names one. Throws InputError.
ModelConfig planned_model(const std::filesystem::path& folder, const std::string& like,
                          std::string& name);

// What of a run is there already, by the names of its files: no content is read.
std::vector<RecipeState> states_on_disk(const RunConfig& config, int blocks);

}  // namespace roundhouse
