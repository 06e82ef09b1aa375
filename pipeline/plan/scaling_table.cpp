#include "pipeline/plan/scaling_table.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "pipeline/plan/mesh_choice.h"
#include "pipeline/plan/quantities.h"

namespace roundhouse {
namespace {

// Ranks of a table.
constexpr int kMostRanks = 512;

// The config with some of its recipes.
RunConfig with_recipes(const RunConfig& config, std::vector<Recipe> recipes) {
  RunConfig other = config;
  other.recipes = std::move(recipes);
  return other;
}

struct Row {
  std::string name;
  RunConfig config;
};

// What takes more of the ranks' time than it took on one.
std::string what_grew(const SimulatedJob& one, const SimulatedJob& many) {
  const int team = many.costs.team(), one_team = one.costs.team();
  double most = 0;
  std::string what = "nothing";
  for (const auto& [phase, seconds] : many.simulation.phases) {
    const auto before = one.simulation.phases.find(phase);
    const double grown =
        seconds * team - (before == one.simulation.phases.end() ? 0.0 : before->second * one_team);
    if (grown <= most) continue;
    most = grown;
    what = phase;
  }
  return what;
}

}  // namespace

std::string scaling_text(const PlanRequest& request) {
  std::string text;
  const auto line = [&text]<class... T>(fmt::format_string<T...> format, T&&... values) {
    text += fmt::format(format, std::forward<T>(values)...) + "\n";
  };
  std::vector<Row> rows;
  for (const Recipe& recipe : request.config.recipes) {
    const bool there = std::ranges::any_of(
        rows, [&](const Row& row) { return row.config.recipes.front().method == recipe.method; });
    if (!there) rows.push_back({recipe.name, with_recipes(request.config, {recipe})});
  }
  if (request.config.recipes.size() > 1) {
    rows.push_back({fmt::format("all {} recipes", request.config.recipes.size()), request.config});
  }
  line("{}, {} x {} tokens, on {} ({}). Reckoned, not measured.", request.model_name,
       request.config.calibration.samples, request.config.calibration.sequence_length,
       request.rates.name, request.rates.source);
  for (Row& row : rows) {
    PlanRequest of = {row.config,    request.model,       request.decoder,
                      request.rates, request.config_file, request.model_name};
    const std::vector<RecipeState> states =
        fresh_states(row.config.recipes, static_cast<int>(request.model.blocks));
    line("");
    line("{}", row.name);
    line("");
    line("| ranks | mesh | time | speed-up | of ideal | ranks busy | what grew most |");
    line("|---|---|---|---|---|---|---|");
    std::optional<SimulatedJob> one;
    for (int ranks = 1; ranks <= kMostRanks; ranks *= 2) {
      const MeshShape mesh = fastest_mesh(of, ranks, states, {0, 0, 0}).mesh;
      SimulatedJob outcome = simulate_job(of, ranks, mesh, states);
      if (!one) one.emplace(std::move(outcome));
      const SimulatedJob& now = ranks == one->costs.job().ranks ? *one : outcome;
      const double speed_up = one->simulation.seconds / now.simulation.seconds;
      line("| {} | {} | {} | {:.1f} | {:.0f} % | {:.0f} % | {} |", ranks, describe(mesh),
           clock(now.simulation.seconds), speed_up, 100 * speed_up * one->costs.job().ranks / ranks,
           100 * now.simulation.utilisation,
           ranks == one->costs.job().ranks ? "" : what_grew(*one, now));
    }
  }
  return text;
}

}  // namespace roundhouse
