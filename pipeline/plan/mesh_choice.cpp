#include "pipeline/plan/mesh_choice.h"

#include <algorithm>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "pipeline/plan/rank_memory.h"

namespace roundhouse {
namespace {

constexpr double kClearlyFaster = 0.99;

MeshShape named_by(const RunConfig& config) {
  return {config.pipeline_ranks, config.data_ranks, config.lanes};
}

[[noreturn]] void refuse_lanes(int lanes, int ranks, int blocks) {
  throw InputError(
      fmt::format("mesh: {} lanes fit neither {} ranks nor {} blocks", lanes, ranks, blocks));
}

bool as_wanted(int number, int wanted) { return wanted == 0 || number == wanted; }

// Simplest first.
std::vector<MeshShape> meshes_of(int ranks, int blocks, int most_lanes, MeshShape wanted) {
  std::vector<MeshShape> meshes;
  for (int stages = 1; stages <= std::min(ranks, blocks); ++stages) {
    if (ranks % stages != 0 || !as_wanted(ranks / stages, wanted.data)) continue;
    for (int lanes = 1; lanes <= stages; ++lanes) {
      if (stages % lanes != 0 || !as_wanted(lanes, wanted.lanes) ||
          !as_wanted(stages / lanes, wanted.pipeline))
        continue;
      if (lanes <= most_lanes || lanes == wanted.lanes)
        meshes.push_back({stages / lanes, ranks / stages, lanes});
    }
  }
  return meshes;
}

// Recipes of a wave. Beyond eight little is left to share, and results come later.
std::vector<int> waves_to_try(const RunConfig& config) {
  if (config.wave > 0) return {config.wave};
  if (config.recipes.size() == 1) return {1};
  return {1, 2, 4, 8};
}

// Recipes that lanes could take, at least one.
int most_lanes(const RunConfig& config, const std::vector<RecipeState>& states) {
  int lanes = 0;
  for (std::size_t r = 0; r < states.size(); ++r)
    lanes += config.recipes[r].needs.streams() && states[r].to_do() ? 1 : 0;
  return std::max(1, lanes);
}

}  // namespace

MeshChoice fastest_mesh(const PlanRequest& request, int ranks,
                        const std::vector<RecipeState>& states, MeshShape wanted) {
  std::optional<MeshChoice> best;
  bool best_fits = false;
  const auto blocks = static_cast<int>(request.model.blocks);
  for (const MeshShape mesh :
       meshes_of(ranks, blocks, most_lanes(request.config, states), wanted)) {
    for (const int most : waves_to_try(request.config)) {
      SimulatedJob job = simulate_job(request, ranks, mesh, states, most);
      const bool fits = fits_memory(job.costs);
      const bool better =
          !best || (fits && !best_fits) ||
          (fits == best_fits && job.simulation.seconds < kClearlyFaster * best->seconds);
      if (!better) continue;
      best = {mesh, std::move(job.lane_of), std::move(job.waves), most, job.simulation.seconds};
      best_fits = fits;
    }
  }
  if (!best) refuse_lanes(wanted.lanes, ranks, blocks);
  return *best;
}

MeshChoice choose_mesh(const PlanRequest& request, int ranks,
                       const std::vector<RecipeState>& states) {
  const MeshShape named = named_by(request.config);
  if (named.pipeline == 0 && named.data == 0) return fastest_mesh(request, ranks, states, named);
  return fastest_mesh(request, ranks, states,
                      named_mesh(named, ranks, static_cast<int>(request.model.blocks)));
}

void check_named_mesh(const RunConfig& config, int ranks, int blocks) {
  const MeshShape named = named_by(config);
  if (named.pipeline > 0 || named.data > 0) {
    (void)named_mesh(named, ranks, blocks);
  } else if (meshes_of(ranks, blocks, 1, named).empty()) {
    refuse_lanes(named.lanes, ranks, blocks);
  }
}

}  // namespace roundhouse
