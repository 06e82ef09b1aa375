#include "pipeline/steps/work_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/watch/time_left.h"

namespace roundhouse {
namespace {

// Whether a recipe waits for the gradients of a block.
bool waits_for(const Recipe& recipe, const RecipeState& state, std::size_t block) {
  return recipe.needs.makes_blocks_of_gradients() ? !state.done[block]
                                                  : state.statistics[block].is_null();
}

// A walk goes forward to the last block whose gradients any of these recipes waits for, and back to the first one. Where it goes on
// from a snapshot beyond, it is a little longer.
void plan_walk(Job& job, const std::vector<RecipeState>& states, std::pair<int, int> size,
               const std::vector<std::size_t>& users, nlohmann::json& plan) {
  const std::vector<Recipe>& recipes = job.config().recipes;
  std::vector<std::size_t> wanted;  // blocks
  for (std::size_t block = 0; block < static_cast<std::size_t>(job.blocks()); ++block) {
    const auto waits = [&](std::size_t r) { return waits_for(recipes[r], states[r], block); };
    if (std::ranges::any_of(users, waits)) wanted.push_back(block);
  }
  for (const std::size_t r : users) {
    if (recipes[r].needs.makes_blocks_of_gradients()) continue;
    plan["statistics " + recipes[r].name] = {
        {"cost", statistics_cost(job.decoder())},
        {"left", std::ranges::count_if(states[r].statistics, &nlohmann::json::is_null)}};
  }
  if (wanted.empty()) return;
  const std::string name = fmt::format("gradients {}x{}", size.first, size.second);
  plan[name + " forward"] = {
      {"cost", gradient_forward_cost(job.decoder(), size.first, size.second)},
      {"left", wanted.back() + 1}};
  plan[name] = {{"cost", gradient_cost(job.decoder(), size.first, size.second)},
                {"left", wanted.back() + 1 - wanted.front()}};
}

}  // namespace

nlohmann::json plan_work(Job& job, const std::vector<RecipeState>& states,
                         const RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  const ModelConfig& model = job.model().config();
  nlohmann::json plan = nlohmann::json::object();
  int unfinished = 0;
  for (std::size_t r = 0; r < states.size(); ++r) {
    const Recipe& recipe = config.recipes[r];
    if (!states[r].to_do()) continue;
    ++unfinished;
    const auto cost_of = [&](const DecoderBlock& decoder) {
      return block_cost(*make_method(recipe), decoder, calibration_set(config, recipe.calibration),
                        !job.backend().is_host_memory());
    };
    const bool outside = !recipe.include.empty() && !states[r].done.back();
    plan["block " + recipe.name] = {{"cost", cost_of(job.decoder())},
                                    {"left", states[r].missing() - (outside ? 1 : 0)}};
    if (outside) {
      plan["outside " + recipe.name] = {{"cost", cost_of(*job.decoder().outer(recipe.include))},
                                        {"left", 1}};
    }
  }
  for (const auto& [size, recipes] : gradient_users(config.recipes, states)) {
    plan_walk(job, states, size, recipes, plan);
  }
  for (const std::string& format : config.export_formats) {
    plan["export " + format] = {{"cost", export_cost(model, job.decoder())}, {"left", unfinished}};
  }
  for (std::size_t t = 0; t < evaluations.size(); ++t) {
    const Evaluation& evaluation = evaluations.at(t);
    plan[(evaluation.is_task() ? "task " : "perplexity ") + evaluation.name] = {
        {"cost", perplexity_cost(model, job.decoder(), evaluation.tokens(), evaluations.size())},
        {"left", unfinished + (config.evaluate_original ? 1 : 0)}};
  }
  return plan;
}

}  // namespace roundhouse
