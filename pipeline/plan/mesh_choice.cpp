#include "pipeline/plan/mesh_choice.h"

#include <algorithm>
#include <optional>

#include "pipeline/plan/rank_memory.h"

namespace roundhouse {
namespace {

constexpr double kClearlyFaster = 0.99;

}  // namespace

MeshChoice fastest_mesh(const PlanRequest& request, int ranks,
                        const std::vector<RecipeState>& states) {
  std::optional<MeshChoice> best;
  bool best_fits = false;
  const int most_stages = std::min(ranks, static_cast<int>(request.model.blocks));
  for (int pipeline = 1; pipeline <= most_stages; ++pipeline) {
    if (ranks % pipeline != 0) continue;
    const MeshShape mesh{pipeline, ranks / pipeline};
    const SimulatedJob job = simulate_job(request, ranks, mesh, states);
    const bool fits = fits_memory(job.costs);
    const bool better =
        !best || (fits && !best_fits) ||
        (fits == best_fits && job.simulation.seconds < kClearlyFaster * best->seconds);
    if (!better) continue;
    best = {mesh, job.simulation.seconds};
    best_fits = fits;
  }
  return *best;  // a mesh of one stage there always is
}

MeshShape choose_mesh(const PlanRequest& request, int ranks,
                      const std::vector<RecipeState>& states) {
  const RunConfig& config = request.config;
  if (config.pipeline_ranks == 0 && config.data_ranks == 0)
    return fastest_mesh(request, ranks, states).mesh;
  return named_mesh(config.pipeline_ranks, config.data_ranks, ranks,
                    static_cast<int>(request.model.blocks));
}

}  // namespace roundhouse
