#include "pipeline/schedule/schedule.h"

#include <algorithm>
#include <iterator>

#include "pipeline/schedule/finished_recipes.h"
#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/handover.h"
#include "pipeline/schedule/unit.h"
#include "pipeline/schedule/wave_walk.h"

namespace roundhouse {

const Samples* Schedule::samples_of(const Recipe& recipe) const {
  const auto found = samples.find(recipe.calibration);
  return recipe.needs.streams() && found != samples.end() ? &found->second : nullptr;
}

namespace {

// Through these recipes on one mesh, of which this rank is one. `on_finished`: Schedule's, or nobody; it gets these recipes and
// `finished`. False if this rank's team stopped. Collective over all ranks, whose meshes may be different ones.
bool walk_recipes(Schedule& schedule, const Mesh& mesh, const std::vector<std::size_t>& numbers,
                  const std::vector<std::size_t>& finished,
                  const std::function<bool(const std::vector<std::size_t>&)>& on_finished,
                  const std::vector<Recipe>& recipes, std::vector<RecipeState>& states) {
  Handover handover(mesh, schedule.backend, schedule.monitor);
  schedule.monitor.on_tick([&] {
    handover.progress();
    schedule.behind.poll();
  });
  FinishedRecipes ready(mesh, static_cast<int>(schedule.model.config().blocks), recipes, finished,
                        numbers, schedule.store, [&] { schedule.monitor.tick(); });
  bool going = true;
  for (const Wave& wave : waves_of(numbers, schedule.waves)) {
    if (going && on_finished) going = on_finished(ready.take());
    WaveWalk walk(schedule, mesh, handover, wave, recipes, states);
    if (going) {
      going = walk.run();
    } else {
      walk.skip();
    }
    finish_writing(schedule);
    const std::vector<bool> made = walk.made();
    for (std::size_t i = 0; i < wave.size(); ++i) ready.tell(wave[i], going && made[i]);
  }
  handover.finish();
  const Watchdog::Waiting waiting(&schedule.monitor.watchdog());
  ready.finish(schedule.mesh.world());
  for (auto& [r, failure] : schedule.failures.share(schedule.mesh.world()))
    states[r].failure = failure;
  schedule.monitor.on_tick(nullptr);
  return going;
}

}  // namespace

bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  std::vector<RecipeState>& states) {
  std::vector<std::size_t> of_gradients;
  for (const auto& [size, users] : gradient_users(recipes, states)) {
    std::ranges::copy_if(users, std::back_inserter(of_gradients), [&](std::size_t r) {
      return recipes[r].needs.makes_blocks_of_gradients();
    });
  }
  if (!make_from_gradients(schedule, recipes, states)) return false;
  std::erase_if(of_gradients, [&](std::size_t r) { return states[r].failure.has_value(); });
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!recipes[r].needs.decision || states[r].failure) continue;
    if (!states[r].decision) (void)decide_or_fail(schedule, r, recipes[r], {}, states[r]);
    const bool stop = schedule.monitor.stop_requested();
    if (schedule.mesh.world().all_reduce_max(stop ? 1 : 0) == 1) return false;
  }

  std::vector<std::size_t> everywhere, mine;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (!states[r].to_do()) continue;
    const bool in_lanes = schedule.lane && schedule.lane->lane_of(r) != Lane::kAllLanes;
    if (!in_lanes) {
      everywhere.push_back(r);
    } else if (schedule.lane->lane_of(r) == schedule.lane->number()) {
      mine.push_back(r);
    }
  }
  if (!schedule.lane)
    return walk_recipes(schedule, schedule.mesh, everywhere, of_gradients, schedule.on_finished,
                        recipes, states);

  // What all have made together is given to the lanes, in turns.
  bool going = walk_recipes(schedule, schedule.mesh, everywhere, {}, nullptr, recipes, states);
  going = schedule.mesh.world().all_reduce_min(going ? 1 : 0) == 1;
  if (!going) return false;
  std::vector<std::size_t> finished;
  std::size_t turn = 0;
  for (const std::vector<std::size_t>& made : {of_gradients, everywhere}) {
    for (const std::size_t r : made) {
      if (states[r].failure) continue;
      if (turn++ % static_cast<std::size_t>(schedule.lane->count()) ==
          static_cast<std::size_t>(schedule.lane->number()))
        finished.push_back(r);
    }
  }
  return walk_recipes(schedule, schedule.lane->mesh(), mine, finished, schedule.on_finished,
                      recipes, states);
}

}  // namespace roundhouse
