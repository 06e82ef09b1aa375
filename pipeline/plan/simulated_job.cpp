#include "pipeline/plan/simulated_job.h"

#include <utility>

namespace roundhouse {

namespace {

// What is left of a recipe that goes through a lane.
double seconds_left(const Recipe& recipe, std::size_t r, const RecipeState& state,
                    const CostModel& costs) {
  if (!recipe.needs.streams() || !state.to_do()) return 0;
  const int walked = state.last_missing() + 1 - state.snapshot;
  return state.missing() * costs.make(r).seconds() +
         (walked - state.missing()) * costs.replay(r).seconds();
}

}  // namespace

SimulatedJob simulate_job(const PlanRequest& request, int ranks, MeshShape mesh,
                          const std::vector<RecipeState>& states) {
  CostModel costs({.config = request.config,
                   .model = request.model,
                   .decoder = request.decoder,
                   .rates = request.rates,
                   .ranks = ranks,
                   .mesh = mesh});
  std::vector<double> left;
  for (std::size_t r = 0; r < states.size(); ++r)
    left.push_back(seconds_left(request.config.recipes[r], r, states[r], costs));
  std::vector<int> lane_of = deal_recipes(left, mesh.lanes);
  auto steps = plan_steps(request.config.recipes, states, mesh,
                          static_cast<int>(request.model.blocks), lane_of);
  Simulation simulation = simulate(steps, costs);
  return {std::move(costs), std::move(lane_of), std::move(steps), std::move(simulation)};
}

}  // namespace roundhouse
