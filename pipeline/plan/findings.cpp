#include "pipeline/plan/findings.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>

#include <fmt/format.h>

#include "pipeline/plan/rank_memory.h"
#include "pipeline/run/run_folder.h"

namespace roundhouse {

namespace fs = std::filesystem;
using nlohmann::json;

// What does not fit, and what would make it fit.
json problems_of(const PlanRequest& request, const SimulatedJob& of) {
  const RunConfig& config = request.config;
  const DeviceRates& rates = request.rates;
  json problems = json::array();
  const auto say = [&](const std::string& what) {
    if (std::ranges::find(problems, json(what)) == problems.end()) problems.push_back(what);
  };
  const RankMemory has = rank_memory(of.costs);
  for (std::size_t r = 0; r < config.recipes.size(); ++r) {
    const MemoryUse memory = of.costs.memory({r});
    const std::string& name = config.recipes[r].name;
    if (memory.device > has.device) {
      say(fmt::format(
          "{}: {:.1f} GB of device memory, and {} has {:.1f}: {}", name, memory.device / 1e9,
          rates.name, rates.device_bytes / 1e9,
          config.recipes[r].needs.gradients
              ? "set a larger calibration.shards on more ranks, or take a device with more"
              : "set memory.saved_activations_gib lower, or take a device with more"));
    }
    if (memory.activations > has.activations) {
      const double wanted = std::ceil(memory.activations / 0x1p30 * 1.02);
      const double rest = memory.host - memory.activations;
      const bool fits = wanted * 0x1p30 + rest < has.host;
      say(fmt::format(
          "{}: {:.1f} GB of activations a rank, and memory.activations_gib {} {:.0f}: {:.1f} GB go "
          "through "
          "files in memory.scratch; {}",
          name, memory.activations / 1e9, config.activation_memory_gib > 0 ? "is" : "is by default",
          has.activations / 0x1p30, (memory.activations - has.activations) / 1e9,
          fits ? fmt::format("memory.activations_gib: {:.0f} holds them", wanted)
          : of.costs.team() < most_shards(config)
              ? "more ranks in a team (mesh.data), or fewer calibration.samples, would hold them"
              : "fewer calibration.samples, or fewer ranks a node, would hold them"));
    } else if (memory.host > has.host) {
      say(fmt::format(
          "{}: {:.1f} GB of host memory a rank, and there are {:.1f} for it on a node of {} ranks: "
          "start fewer ranks a node, or set memory.activations_gib lower",
          name, memory.host / 1e9, has.host / 1e9,
          std::min(of.costs.job().ranks, rates.ranks_a_node)));
    }
  }
  const MemoryUse evaluating = of.costs.evaluation_memory();
  if (evaluating.device > has.device) {
    say(fmt::format(
        "evaluations: {:.1f} GB of device memory, and {} has {:.1f}: take a device with more",
        evaluating.device / 1e9, rates.name, rates.device_bytes / 1e9));
  } else if (evaluating.host > has.host) {
    say(fmt::format(
        "evaluations: {:.1f} GB of host memory a rank, and there are {:.1f} for it: start "
        "fewer ranks a node, or set memory.activations_gib lower",
        evaluating.host / 1e9, has.host / 1e9));
  }
  std::error_code error;
  fs::path place = fs::absolute(config.run, error);
  while (!error && !fs::exists(place, error) && place.has_relative_path())
    place = place.parent_path();
  const fs::space_info space = fs::space(place, error);
  const double needed = of.costs.disk(of.waves).peak();
  if (!error && space.capacity > 0 && needed > static_cast<double>(space.available)) {
    say(fmt::format(
        "disk: {:.1f} GB at most, and {} has {:.1f} free: put `run` elsewhere, or export fewer "
        "formats",
        needed / 1e9, place.string(), static_cast<double>(space.available) / 1e9));
  }
  if (const std::vector<std::string> other = other_settings(config); !other.empty()) {
    say(fmt::format("run: {} holds a run with other settings, which will be refused: {}",
                    config.run.string(), fmt::join(other, "; ")));
  }
  const auto check_length = [&](const std::string& key, std::int64_t tokens) {
    if (tokens > request.model.max_positions)
      say(fmt::format("{}: {} tokens, but the model has only {} positions: set it lower", key,
                      tokens, request.model.max_positions));
  };
  for (const std::string& set : calibration_sets_in_use(config)) {
    const std::string key = set == kDefaultCalibration ? "calibration" : "calibrations." + set;
    check_length(key + ".sequence_length", calibration_set(config, set).sequence_length);
  }
  for (const PerplexityTask& task : config.evaluations.perplexity)
    check_length("evaluate.perplexity window of " + task.name, task.window);
  if (config.time_limit_minutes > 0 && of.simulation.seconds > 60 * config.time_limit_minutes) {
    say(
        fmt::format("limits.minutes: {}, and the job takes {:.0f}: it stops cleanly then and goes "
                    "on when it is "
                    "started again",
                    config.time_limit_minutes, of.simulation.seconds / 60));
  }
  return problems;
}

json hints_of(const PlanRequest& request, const SimulatedJob& of, const MeshChoice& best) {
  json hints = json::array();
  const MeshShape mesh = of.costs.job().mesh;
  if (best.seconds < 0.97 * of.simulation.seconds && best.mesh != mesh) {
    hints.push_back(
        fmt::format("mesh: {{lanes: {}, pipeline: {}, data: {}}} would take {:.0f} % of this time",
                    best.mesh.lanes, best.mesh.pipeline, best.mesh.data,
                    100 * best.seconds / of.simulation.seconds));
  }
  if (const DeviceRates& rates = request.rates;
      rates.is_host && rates.bf16 != request.config.cpu_bf16) {
    hints.push_back(fmt::format(
        "cpu_precision is {}, and {} has the rates of {}: times are by these",
        request.config.cpu_bf16 ? "bf16" : "f32", rates.name, rates.bf16 ? "bf16" : "f32"));
  }
  const int shards = most_shards(request.config);
  if (shards % mesh.data != 0) {
    const int each = (shards + mesh.data - 1) / mesh.data;
    hints.push_back(fmt::format(
        "{} shards on {} ranks of a team keep {:.0f} % of them busy: calibration.shards of a "
        "multiple of {} would keep all busy (and gives other bits)",
        shards, mesh.data, 100.0 * shards / (each * mesh.data), mesh.data));
  }
  for (const Recipe& recipe : request.config.recipes) {
    if (recipe.needs.widest_team == 0 || recipe.needs.widest_team >= mesh.data) continue;
    hints.push_back(fmt::format("{}: {} of the {} ranks of a team have work most of the time",
                                recipe.name, recipe.needs.widest_team, mesh.data));
  }
  return hints;
}

}  // namespace roundhouse
