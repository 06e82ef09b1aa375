#include "pipeline/steps/work_plan.h"

#include <algorithm>
#include <cstdint>

#include <fmt/format.h>

#include "pipeline/schedule/gradient_recipes.h"

namespace roundhouse {
namespace {

// Whether a recipe waits for the gradients of a block.
bool waits_for(const Recipe& recipe, const RecipeState& state, std::size_t block) {
  return recipe.needs.makes_blocks_of_gradients() ? !state.done[block]
                                                  : state.statistics[block].is_null();
}

nlohmann::json work_of(double seconds, int ranks, std::int64_t left) {
  return {{"cost", seconds * ranks}, {"left", left}};
}

// A walk goes forward to the last block whose gradients any of these recipes waits for, and back to the first one. Where it goes on
// from a snapshot beyond, it is a little longer.
void plan_walk(const Job& job, const CostModel& costs, const std::vector<RecipeState>& states,
               std::pair<int, int> size, const std::vector<std::size_t>& users,
               nlohmann::json& plan) {
  const std::vector<Recipe>& recipes = job.config().recipes;
  std::vector<std::size_t> wanted;  // blocks
  for (std::size_t block = 0; block < static_cast<std::size_t>(job.blocks()); ++block) {
    const auto waits = [&](std::size_t r) { return waits_for(recipes[r], states[r], block); };
    if (std::ranges::any_of(users, waits)) wanted.push_back(block);
  }
  for (const std::size_t r : users) {
    if (recipes[r].needs.makes_blocks_of_gradients()) continue;
    plan["statistics " + recipes[r].name] =
        work_of(costs.statistics(r).seconds(), costs.team(),
                std::ranges::count_if(states[r].statistics, &nlohmann::json::is_null));
  }
  if (wanted.empty()) return;
  const std::string name = fmt::format("gradients {}x{}", size.first, size.second);
  const auto to = static_cast<std::int64_t>(wanted.back() + 1);
  plan[name + " forward"] =
      work_of(costs.gradient_forward(users.front()).seconds(), costs.team(), to);
  plan[name] = work_of(costs.gradient_backward(users.front()).seconds(), costs.team(),
                       to - static_cast<std::int64_t>(wanted.front()));
}

}  // namespace

nlohmann::json plan_work(const Job& job, const CostModel& costs,
                         const std::vector<RecipeState>& states,
                         const RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  nlohmann::json plan = nlohmann::json::object();
  std::vector<std::size_t> unfinished;
  for (std::size_t r = 0; r < states.size(); ++r) {
    const Recipe& recipe = config.recipes[r];
    if (!states[r].to_do()) continue;
    unfinished.push_back(r);
    const bool outside = !recipe.include.empty() && !states[r].done.back();
    plan["block " + recipe.name] =
        work_of(costs.make(r).seconds(), costs.team(), states[r].missing() - (outside ? 1 : 0));
    if (outside)
      plan["outside " + recipe.name] = work_of(costs.make_outside(r).seconds(), costs.team(), 1);
  }
  for (const auto& [size, recipes] : gradient_users(config.recipes, states))
    plan_walk(job, costs, states, size, recipes, plan);
  const auto recipes_left = static_cast<std::int64_t>(unfinished.size());
  for (const std::string& format : config.export_formats) {
    double seconds = 0;
    for (const std::size_t r : unfinished) seconds += costs.export_seconds(r, format, costs.team());
    if (recipes_left > 0)
      plan["export " + format] =
          work_of(seconds / static_cast<double>(recipes_left), costs.team(), recipes_left);
  }
  // One walk measures them all: each takes the share of its tokens.
  double tokens = 0;
  for (std::size_t t = 0; t < evaluations.size(); ++t) tokens += evaluations.at(t).tokens();
  const double seconds = costs.evaluation(CostModel::Evaluated::kRecipe, costs.team()).seconds;
  for (std::size_t t = 0; t < evaluations.size(); ++t) {
    const Evaluation& evaluation = evaluations.at(t);
    plan[(evaluation.is_task() ? "task " : "perplexity ") + evaluation.name] =
        work_of(tokens > 0 ? seconds * evaluation.tokens() / tokens : 0, costs.team(),
                recipes_left + (config.evaluate_original ? 1 : 0));
  }
  return plan;
}

}  // namespace roundhouse
