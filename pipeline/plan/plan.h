// `roundhouse plan`: what a job would do and take, reckoned before it is queued.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/block/decoder_block.h"
#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/device_rates.h"
#include "pipeline/schedule/schedule.h"

namespace roundhouse {

struct PlanRequest {
  const RunConfig& config;
  const ModelConfig& model;
  const DecoderBlock& shape;
  const DeviceRates& rates;
  std::string config_file;  // for the batch script's line
  std::string model_name;   // for people
};

// The model's folder has config.json, or is called like a published shape, or `like` names one. Throws InputError.
ModelConfig planned_model(const std::filesystem::path& folder, const std::string& like,
                          std::string& name);

// What of a run is there already, by the names of its files: no content is read.
std::vector<RecipeState> states_on_disk(const RunConfig& config, int blocks);

// Throws InputError where the ranks fit no mesh. Everything of the plan, as docs/scaling.md lists it.
nlohmann::json make_plan(const PlanRequest& request, int ranks, std::vector<RecipeState> states);
std::string plan_text(const nlohmann::json& plan);

// Of one recipe of each method, and of all recipes: hours by ranks, and where more ranks help less.
std::string scaling_text(const PlanRequest& request);

}  // namespace roundhouse
