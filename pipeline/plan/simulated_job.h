// A job on a mesh, simulated: what plans and the choice of a mesh are made of.
#pragma once

#include <string>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/cost_model.h"
#include "pipeline/plan/device_rates.h"
#include "pipeline/plan/simulation.h"
#include "pipeline/schedule/planner.h"

namespace roundhouse {

struct PlanRequest {
  const RunConfig& config;
  const ModelConfig& model;
  const DecoderBlock& decoder;
  const DeviceRates& rates;
  std::string config_file = {};  // for the batch script's line
  std::string model_name = {};   // for people
};

struct SimulatedJob {
  CostModel costs;
  std::vector<int> lane_of;              // by recipe
  std::vector<std::vector<Step>> steps;  // by stage
  Simulation simulation;
};

SimulatedJob simulate_job(const PlanRequest& request, int ranks, MeshShape mesh,
                          const std::vector<RecipeState>& states);

}  // namespace roundhouse
