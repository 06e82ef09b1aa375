#include "pipeline/schedule/schedule.h"

#include <algorithm>
#include <iterator>

#include "pipeline/schedule/finished_recipes.h"
#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/handover.h"
#include "pipeline/schedule/recipe_walk.h"
#include "pipeline/schedule/unit.h"

namespace roundhouse {

const Samples* Schedule::samples_of(const Recipe& recipe) const {
  const auto found = samples.find(recipe.calibration);
  return recipe.needs.streams() && found != samples.end() ? &found->second : nullptr;
}

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

  Handover handover(schedule.mesh, schedule.backend, schedule.monitor);
  schedule.monitor.on_tick([&] {
    handover.progress();
    schedule.behind.poll();
  });
  std::vector<std::size_t> unfinished;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    if (states[r].to_do()) unfinished.push_back(r);
  }
  const int blocks = static_cast<int>(schedule.model.config().blocks);
  FinishedRecipes ready(schedule.mesh, blocks, recipes, of_gradients, unfinished, schedule.store,
                        [&] { schedule.monitor.tick(); });
  bool finished = true;
  for (const std::size_t r : unfinished) {
    if (finished && schedule.on_finished) finished = schedule.on_finished(ready.take());
    RecipeWalk walk(schedule, handover, r, recipes, states[r]);
    RecipeWalk::End end = RecipeWalk::End::kStopped;
    if (finished) {
      end = walk.run();
    } else {
      walk.skip();
    }
    finished = end != RecipeWalk::End::kStopped;
    finish_writing(schedule);
    ready.tell(r, end == RecipeWalk::End::kDone);
  }
  handover.finish();
  {
    const Watchdog::Waiting waiting(&schedule.monitor.watchdog());
    ready.finish();
    for (auto& [r, failure] : schedule.failures.share(schedule.mesh.world()))
      states[r].failure = failure;
  }
  schedule.monitor.on_tick(nullptr);
  return finished;
}

}  // namespace roundhouse
