#include "pipeline/schedule/unit.h"

#include <utility>

#include "base/error.h"
#include "comm/together.h"
#include "pipeline/schedule/stored_progress.h"
#include "stages/store/block_record.h"

namespace roundhouse {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json origin_of_block(const Schedule& schedule, int block) {
  return {{kMadeOf, contents_of_block(schedule.model, block)},
          {kComputedBy, schedule.backend.computes_as()}};
}

void with_place_named(const std::string& place, const std::function<void()>& work) {
  try {
    work();
  } catch (const InUseError&) {
    throw;
  } catch (const BadNodeError&) {
    throw;
  } catch (const InputError& error) {
    throw InputError(place + ": " + error.what());
  } catch (const Error& error) {
    throw Error(place + ": " + error.what());
  }
}

void make_unit(Schedule& schedule, const Recipe& recipe, const Method& method, BlockTask& task,
               std::chrono::steady_clock::time_point start, double load_seconds) {
  QuantizedBlock result;
  with_place_named(recipe.name + ", block " + std::to_string(task.block),
                   [&] { result = method.quantize(task); });
  if (task.team.rank() != 0) return;
  // Seconds are for the journal; the record has the same bytes whenever and on however many ranks it is made.
  nlohmann::json phases = std::exchange(result.record["phases"], nullptr);
  result.record.erase("phases");
  const auto commit_start = std::chrono::steady_clock::now();
  Record record = to_record(result);
  record.attributes.update(origin_of_block(schedule, task.block));
  schedule.store.commit(block_key(recipe.name, task.block), record);
  if (task.progress) remove_progress(recipe.name, task.block, schedule.store);
  phases["load"] = load_seconds;
  phases["commit"] = seconds_since(commit_start);
  result.record["phases"] = std::move(phases);
  schedule.on_unit(recipe, result, seconds_since(start));
}

nlohmann::json decide(Schedule& schedule, const Recipe& recipe,
                      std::vector<nlohmann::json> statistics) {
  Communicator& world = schedule.mesh.world();
  schedule.monitor.phase(recipe.name + ": deciding for the whole model");
  ModelTask task{.backend = schedule.backend,
                 .world = world,
                 .model = schedule.model,
                 .shape = schedule.shape,
                 .samples = schedule.samples,
                 .monitor = schedule.monitor,
                 .statistics = std::move(statistics)};
  nlohmann::json decision;
  with_place_named(recipe.name, [&] { decision = schedule.method_of(recipe)->decide(task); });
  require(decision.is_object(), "what a method decides is an object");
  Record record;
  record.attributes = {{kDecision, decision},
                       {kMadeOf, schedule.identity.contents_of_model()},
                       {kComputedBy, schedule.backend.computes_as()}};
  const std::string key = decision_key(recipe.name);
  std::uint64_t bytes = 0;
  together(world, [&] {
    if (world.rank() != 0) return;
    schedule.store.commit(key, record);
    bytes = schedule.store.bytes(key);
  });
  const auto shared = nlohmann::json::parse(share(world, nlohmann::json{decision, bytes}.dump()));
  schedule.store.expect(key, shared[1].get<std::uint64_t>());
  return shared[0];
}

}  // namespace roundhouse
