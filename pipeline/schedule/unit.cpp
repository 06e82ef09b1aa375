#include "pipeline/schedule/unit.h"

#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "comm/together.h"
#include "stages/store/block_record.h"

namespace roundhouse {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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
  record.attributes[kMadeOf] = contents_of_block(schedule.model, task.block);
  record.attributes[kComputedBy] = schedule.backend.computes_as();
  if (recipe.needs.decision) record.attributes[kDecidedAs] = identity_of(task.decision);
  schedule.store.commit(block_key(recipe.name, task.block), record);
  phases["load"] = load_seconds;
  phases["commit"] = seconds_since(commit_start);
  result.record["phases"] = std::move(phases);
  schedule.on_unit(recipe, result, seconds_since(start));
}

std::string identity_of(const nlohmann::json& decision) { return xxh3_hex(decision.dump()); }

void check_decision(const Recipe& recipe, const RecipeState& state) {
  if (!state.decision) return;
  const std::string mine = identity_of(*state.decision);
  for (const std::string& theirs : state.decided_as) {
    if (theirs == mine) continue;
    throw InputError(
        "recipes/" + recipe.name +
        ": its blocks were made by another decision for the whole model than " +
        decision_key(recipe.name) +
        ".h5, as on another kind of device: remove the folder to make the recipe again");
  }
}

void decide(Schedule& schedule, const Recipe& recipe, std::vector<nlohmann::json> statistics,
            RecipeState& state) {
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
  state.decision = nlohmann::json::parse(share(world, decision.dump()));
  check_decision(recipe, state);
  Record record;
  record.attributes = {{kDecision, *state.decision},
                       {kMadeOf, schedule.identity.contents_of_model()},
                       {kComputedBy, schedule.backend.computes_as()}};
  const std::string key = decision_key(recipe.name);
  std::uint64_t bytes = 0;
  together(world, [&] {
    if (world.rank() != 0) return;
    schedule.store.commit(key, record);
    bytes = schedule.store.bytes(key);
  });
  schedule.store.expect(
      key, nlohmann::json::parse(share(world, nlohmann::json(bytes).dump())).get<std::uint64_t>());
}

}  // namespace roundhouse
