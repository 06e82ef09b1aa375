#include "pipeline/steps/work_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/watch/time_left.h"

namespace roundhouse {
namespace {

// Blocks whose gradients any of these recipes waits for.
int gradient_blocks(const std::vector<Recipe>& recipes, const std::vector<RecipeState>& states,
                    const std::vector<std::size_t>& users) {
  int count = 0;
  for (std::size_t block = 0; block < states.front().done.size(); ++block) {
    count += std::ranges::any_of(users, [&](std::size_t r) {
      return !recipes[r].needs.makes_blocks_of_gradients() || !states[r].done[block];
    });
  }
  return count;
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
    plan["block " + recipe.name] = {
        {"cost", block_cost(*make_method(recipe), job.decoder(), calibration_set(config, recipe.calibration),
                            !job.backend().is_host_memory())},
        {"left", states[r].missing()}};
  }
  for (const auto& [size, recipes] : gradient_users(config.recipes, states)) {
    plan[fmt::format("gradients {}x{}", size.first, size.second)] = {
        {"cost", gradient_cost(job.decoder(), size.first, size.second)},
        {"left", gradient_blocks(config.recipes, states, recipes)}};
  }
  for (const std::string& format : config.export_formats) {
    plan["export " + format] = {{"cost", export_cost(model, job.decoder())}, {"left", unfinished}};
  }
  for (std::size_t t = 0; t < evaluations.size(); ++t) {
    const Evaluation& evaluation = evaluations.at(t);
    plan[(evaluation.is_task() ? "task " : "perplexity ") + evaluation.name] = {
        {"cost", perplexity_cost(model, job.decoder(), evaluation.tokens())},
        {"left", unfinished + (config.evaluate_original ? 1 : 0)}};
  }
  return plan;
}

}  // namespace roundhouse
