#include "pipeline/schedule/unit.h"

#include <memory>
#include <utility>

#include <fmt/format.h>

#include "base/hash.h"
#include "base/numerical_error.h"
#include "comm/together.h"
#include "model/architectures/tensor_names.h"
#include "model/block/model_units.h"
#include "pipeline/schedule/stored_progress.h"
#include "stages/flow/load_shared.h"
#include "stages/flow/numerical_failures.h"
#include "stages/store/block_record.h"

namespace roundhouse {

namespace {

// Of the model's files, for one rank, which reads `part` of a block.
std::int64_t bytes_of_unit(const CausalLM& model, const DecoderBlock& decoder, int block,
                           WeightPart part) {
  std::int64_t bytes = 0;
  if (block >= model.config().blocks) {
    for (const LinearSpec& linear : decoder.linears())
      bytes += linear.rows * linear.cols * static_cast<std::int64_t>(size_of(model.config().dtype));
    return bytes;
  }
  for (const TensorInfo& tensor : tensors_of_block(model.config(), block)) {
    if (tensor.shape.size() == 1 && model.checkpoint().has(tensor.name))  // a norm or a bias
      bytes += std::ssize(model.checkpoint().view(tensor.name).bytes);
  }
  for (const auto& [linear, pieces] : pieces_of_part(decoder.linears(), part)) {
    const HostView view = model.checkpoint().view(decoder.module(block, linear) + ".weight");
    bytes += std::ssize(bytes_of_pieces(view.bytes, size_of(view.type), pieces));
  }
  return bytes;
}

// A block that is none (a value that its type cannot hold) is the method's last word on these numbers.
Record to_valid_record(const QuantizedBlock& block) {
  try {
    return to_record(block);
  } catch (const Error& error) {
    throw NumericalError(error.what());
  }
}

}  // namespace

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::json origin_of_block(const Schedule& schedule, int block) {
  return {{kMadeOf, contents_of_block(schedule.model, block)},
          {kComputedBy, schedule.backend.computes_as()}};
}

int committer_of(int block, int team_size) { return block % team_size; }

void finish_writing(Schedule& schedule) {
  together(schedule.mesh.team(), [&] { schedule.behind.finish(); });
}

void make_unit(Schedule& schedule, const Recipe& recipe, const Method& method, BlockTask& task,
               std::chrono::steady_clock::time_point start, std::optional<double> load_seconds) {
  const auto result = std::make_shared<QuantizedBlock>();
  Record record;
  nlohmann::json phases;
  const auto at_place = [&](const std::function<void()>& work) {
    with_place_named(fmt::format("{}, {}", recipe.name, unit_name(task.block, task.decoder)), work);
  };
  task.committer = committer_of(task.block, task.team.size());
  task.overrides = recipe.overrides;
  at_place([&] { *result = skips_all(task) ? keep_block(task) : method.quantize(task); });
  const auto commit_start = std::chrono::steady_clock::now();
  finish_writing(schedule);
  at_place([&] {
    NumericalFailures failures;
    if (task.commits()) {
      // Seconds are for the journal; the record has the same bytes whenever and on however many ranks it is made.
      phases = std::exchange(result->record["phases"], nullptr);
      result->record.erase("phases");
      failures.run(0, [&] { record = to_valid_record(*result); });
    }
    failures.agree(task.team);  // whether it may be committed
  });
  if (!task.commits()) return;
  for (QuantizedLinear& linear : result->linears) linear.codes = {};  // the record has them packed
  record.attributes.update(origin_of_block(schedule, task.block));
  if (recipe.needs.decision) record.attributes[kDecidedAs] = identity_of(task.decision);
  phases["load"] = load_seconds.value_or(0.0);
  phases["commit"] = seconds_since(commit_start);
  result->record["phases"] = std::move(phases);
  result->record["read_bytes"] = load_seconds
                                     ? bytes_of_unit(schedule.model, task.decoder, task.block,
                                                     part_read_by_rank(task.team, task.backend))
                                     : 0;
  // It is told of when it is written; which ranks made it, and when they were done, is told too.
  result->record["first_rank"] = schedule.mesh.stage() * schedule.mesh.shape().data;
  const bool keeps_progress = task.progress != nullptr;
  schedule.behind.start(block_key(recipe.name, task.block), std::move(record),
                        [&schedule, &recipe, result, keeps_progress, seconds = seconds_since(start),
                         end = std::chrono::steady_clock::now()](double writing) {
                          if (keeps_progress)
                            remove_progress(recipe.name, result->block, schedule.store);
                          result->record["write_seconds"] = writing;
                          result->record["told_after"] = seconds_since(end);
                          schedule.on_unit(recipe, *result, seconds);
                        });
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

void note_failure(Schedule& schedule, std::size_t number, const Recipe& recipe, int block,
                  const std::string& what) {
  RecipeFailure failure{.block = block, .reason = what};
  if (block >= schedule.model.config().blocks) failure.outside = recipe.include;
  const std::string place = block >= 0 ? fmt::format("{}, {}: ", recipe.name, failure.place())
                                       : fmt::format("{}: ", recipe.name);
  if (failure.reason.starts_with(place)) failure.reason.erase(0, place.size());
  if (block >= 0) failure.attributes[kMadeOf] = contents_of_block(schedule.model, block);
  failure.attributes[kComputedBy] = schedule.backend.computes_as();
  nlohmann::json event = {{"event", "recipe_failed"},
                          {"recipe", recipe.name},
                          {"block", block},
                          {"reason", failure.reason}};
  if (!failure.outside.empty()) event["outside"] = failure.outside;
  schedule.monitor.event(event);
  schedule.monitor.say(fmt::format("{} failed at {} and is not gone on with: {}", recipe.name,
                                   failure.place(), failure.reason));
  schedule.failures.add(number, recipe.name, std::move(failure), schedule.store);
}

bool decide_or_fail(Schedule& schedule, std::size_t number, const Recipe& recipe,
                    const std::vector<nlohmann::json>& statistics, RecipeState& state) {
  try {
    decide(schedule, recipe, statistics, state);
    return true;
  } catch (const UnquantizableError& error) {  // on all ranks alike
    state.failure = RecipeFailure{.reason = error.what()};
    if (schedule.mesh.world().rank() == 0) {
      note_failure(schedule, number, recipe, RecipeFailure::kWholeModel, error.what());
    }
    return false;
  }
}

void decide(Schedule& schedule, const Recipe& recipe, std::vector<nlohmann::json> statistics,
            RecipeState& state) {
  Communicator& world = schedule.mesh.world();
  schedule.monitor.phase(recipe.name + ": deciding for the whole model");
  ModelTask task{.backend = schedule.backend,
                 .world = world,
                 .model = schedule.model,
                 .decoder = schedule.decoder,
                 .samples = schedule.samples_of(recipe),
                 .monitor = schedule.monitor,
                 .statistics = std::move(statistics),
                 .overrides = recipe.overrides};
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
