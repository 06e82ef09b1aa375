#include "pipeline/plan/simulated_job.h"

#include <utility>

namespace roundhouse {

SimulatedJob simulate_job(const PlanRequest& request, int ranks, MeshShape mesh,
                          const std::vector<RecipeState>& states) {
  CostModel costs({.config = request.config,
                   .model = request.model,
                   .shape = request.shape,
                   .rates = request.rates,
                   .ranks = ranks,
                   .mesh = mesh});
  auto steps =
      plan_steps(request.config.recipes, states, mesh, static_cast<int>(request.model.blocks));
  Simulation simulation = simulate(steps, costs);
  return {std::move(costs), std::move(steps), std::move(simulation)};
}

}  // namespace roundhouse
