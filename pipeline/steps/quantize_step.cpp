#include "pipeline/steps/quantize_step.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/counted.h"
#include "base/error.h"
#include "comm/together.h"
#include "kernels/host_memory.h"
#include "model/block/model_units.h"
#include "pipeline/plan/mesh_choice.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/schedule/snapshots.h"
#include "pipeline/schedule/stored_progress.h"
#include "pipeline/start/agreement.h"
#include "pipeline/start/scratch.h"
#include "pipeline/steps/calibrate_step.h"
#include "pipeline/steps/products.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/steps/work_plan.h"
#include "pipeline/watch/peak_memory.h"

namespace roundhouse {
namespace {

// Says what one finished unit was like: a line for people, an event for the journal.
void report_unit(Job& job, const Recipe& recipe, const QuantizedBlock& block, double seconds,
                 int team_size, std::size_t& most_spilled) {
  double error = 0, norm = 0;
  nlohmann::json linears = nlohmann::json::array();
  for (const QuantizedLinear& linear : block.linears) {
    nlohmann::json facts = linear.record;
    facts["name"] = linear.name;
    linears.push_back(facts);
    const double relative = linear.record.value("relative_error", 0.0);
    error += linear.record.value("error", 0.0);
    if (relative > 0) norm += linear.record.value("error", 0.0) / relative;
  }
  nlohmann::json event = block.record;
  event["event"] = "block";
  event["recipe"] = recipe.name;
  event["block"] = block.block;
  if (block.block >= job.blocks()) event["outside"] = recipe.include;
  event["seconds"] = seconds;
  event["ranks"] = team_size;
  const BitsPerWeight bits = bits_per_weight(block.linears);
  event["bits_per_weight"] = bits.dense;
  if (bits.sparse > 0) event["sparse_bits_per_weight"] = bits.sparse;
  event["relative_error"] = norm > 0 ? error / norm : 0.0;
  event["linears"] = std::move(linears);
  event["peak_memory_mib"] = peak_memory_mib();
  event["pinned_memory_mib"] = static_cast<double>(job.budget().pinned_bytes()) / 0x1p20;
  const std::size_t spilled = job.budget().spilled_bytes();
  event["spilled_memory_mib"] = static_cast<double>(spilled) / 0x1p20;
  if (spilled > std::exchange(most_spilled, std::max(spilled, most_spilled))) {
    job.monitor().say(fmt::format(
        "activations: {} MiB of them are in {}, since memory.activations_gib has no more room",
        spilled >> 20, scratch_folder(job.config()).string()));
  }
  job.monitor().event(event);

  const std::string told = norm > 0 ? fmt::format(", error {:.2e}", error / norm) : "";
  const std::string unit = unit_name(block.block, job.blocks(), recipe.include);
  job.monitor().unit_done(fmt::format("{} {}{}", recipe.name, unit, told), seconds);
}

// Blocks are made on the same kind of device as those before: another computes other last bits.
void settle_device(Job& job, const std::vector<RecipeState>& states) {
  const std::string mine = job.backend().computes_as();
  std::set<std::string> now, before;
  for (const auto& bytes : job.world().all_gather(std::as_bytes(std::span(mine)))) {
    now.emplace(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  for (const RecipeState& state : states) {
    if (!state.complete() && !state.failure)
      before.insert(state.computed_by.begin(), state.computed_by.end());
  }
  std::set<std::string> all = now;
  all.insert(before.begin(), before.end());
  if (all.size() == 1) return;
  const std::string what =
      now.size() > 1
          ? fmt::format("ranks of this job compute differently: {}", fmt::join(now, "; "))
          : fmt::format("blocks in {} were computed by {}; this job computes by {}",
                        job.config().run.string(), fmt::join(before, "; "), *now.begin());
  if (!job.config().allow_other_device) {
    throw InputError(what +
                     ". Their results differ in their last bits. Go on where the machine is of "
                     "that kind, use another run "
                     "folder, or set `allow_other_device: true` to have both in one model");
  }
  if (!job.first()) return;
  job.monitor().say(what + ": gone on as allow_other_device asks");
  job.monitor().event({{"event", "other_device"}, {"before", before}, {"now", now}});
}

// Of the device, and of the machine as this rank sees it.
DeviceRates rates_here(Job& job) {
  DeviceRates rates = rates_like(job.backend());
  rates.ranks_a_node = job.ranks_a_node();
  rates.host_bytes = static_cast<double>(available_host_memory());
  return rates;
}

// Rank 0 chooses, by what it sees of the machine.
MeshChoice agreed_mesh(Job& job, const std::vector<RecipeState>& states) {
  nlohmann::json chosen;
  const int ranks = job.world().size();
  agree(job.world(), [&] {
    if (!job.first()) return;
    const DeviceRates rates = rates_here(job);
    const PlanRequest request{job.config(), job.model().config(), job.decoder(), rates};
    const MeshChoice best = choose_mesh(request, ranks, states);
    chosen = {best.mesh.pipeline, best.mesh.data, best.mesh.lanes, best.lane_of, best.waves};
  });
  chosen = nlohmann::json::parse(job.share(chosen.dump()));
  return {.mesh = {chosen[0].get<int>(), chosen[1].get<int>(), chosen[2].get<int>()},
          .lane_of = chosen[3].get<std::vector<int>>(),
          .waves = chosen[4].get<std::vector<Wave>>()};
}

nlohmann::json to_json(const MeshChoice& chosen, const std::vector<Recipe>& recipes) {
  nlohmann::json mesh = {
      {"lanes", chosen.mesh.lanes}, {"pipeline", chosen.mesh.pipeline}, {"data", chosen.mesh.data}};
  for (std::size_t r = 0; r < recipes.size() && chosen.mesh.lanes > 1; ++r) {
    if (chosen.lane_of[r] != Lane::kAllLanes) mesh["lane_of"][recipes[r].name] = chosen.lane_of[r];
  }
  // Recipes that go alone are left out.
  for (const Wave& wave : chosen.waves) {
    nlohmann::json names = nlohmann::json::array();
    for (const std::size_t r : wave) names.push_back(recipes[r].name);
    if (wave.size() > 1) mesh["waves"].push_back(std::move(names));
  }
  return mesh;
}

// Exports and figures of recipes that have become finished while others are quantized, by the team that they were given to.
// `doubted` gets those whose blocks are not all whole any more.
bool make_products_meanwhile(Job& job, Communicator& team, const std::vector<std::size_t>& recipes,
                             RunEvaluations& evaluations, std::set<std::size_t>& doubted) {
  for (const std::size_t index : recipes) {
    const Recipe& recipe = job.config().recipes[index];
    const int units = recipe.units(job.blocks());
    const RecipeState state = inspect_recipe(recipe, units, 0, job.store(), team);
    // What is damaged is made again at the end, by all ranks together.
    if (state.missing() > 0 || count_damaged(block_keys(recipe.name, units), job.store(), team,
                                             [&] { job.monitor().tick(); }) > 0) {
      doubted.insert(index);
      continue;
    }
    job.model_identity().learn(state.made_of);
    if (!make_products(job, team, {recipe.name}, evaluations)) return false;
  }
  if (job.first()) report_run(job.config().run, false);
  return true;
}

// What any team doubts is read again by all, whoever has seen it whole before. Collective over the world.
void spread_doubt(Job& job, const std::set<std::size_t>& doubted) {
  for (std::size_t r = 0; r < job.config().recipes.size(); ++r) {
    if (job.world().all_reduce_max(doubted.contains(r) ? 1 : 0) == 0) continue;
    const Recipe& recipe = job.config().recipes[r];
    for (const std::string& key : block_keys(recipe.name, recipe.units(job.blocks()))) {
      job.store().doubt(key);
    }
  }
}

}  // namespace

bool quantize(Job& job, RunEvaluations& evaluations, Failures& failures) {
  const RunConfig& config = job.config();
  const int blocks = job.blocks();
  // What can be refused is refused before anything is computed.
  job.monitor().phase("looking for finished blocks");
  std::vector<RecipeState> states;
  std::vector<ContentsByTensor> made_of;
  int missing = 0, total = 0;
  for (const Recipe& recipe : config.recipes) {
    states.push_back(inspect_recipe(recipe, recipe.units(blocks),
                                    calibration_set(config, recipe.calibration).shards, job.store(),
                                    job.world(), [&] { job.monitor().tick(); }));
    if (states.back().failure) {
      if (job.first()) {
        const RecipeFailure& failure = *states.back().failure;
        job.monitor().say(recipe.name + " failed before at " + failure.place() +
                          " (run --retry-failed tries it again): " + failure.reason);
      }
    } else {
      missing += states.back().missing();
      total += recipe.units(blocks);
    }
    made_of.push_back(states.back().made_of);
  }
  job.model_identity().settle(made_of);
  if (job.first()) {
    std::vector<std::string> unfinished;
    for (std::size_t r = 0; r < states.size(); ++r) {
      if (states[r].to_do()) unfinished.push_back(config.recipes[r].name);
    }
    remove_unused_snapshots(unfinished, job.store());
    remove_unused_progress(unfinished, job.store());
  }

  const auto settled = [](const RecipeState& state) { return state.complete() || state.failure; };
  if (!std::ranges::all_of(states, settled)) settle_device(job, states);
  std::map<std::string, Samples> samples;
  for (const std::string& set : calibration_sets_in_use(config))
    samples.emplace(set, calibration_samples(job, set));
  // Those of every walk now: that the text is too short for the second one is not to be found out after the first.
  std::map<std::pair<int, int>, Samples> of_gradients;
  for (const auto& [size, users] : gradient_users(config.recipes, states)) {
    const auto& gradients = config.recipes[users.front()].needs.gradients;
    of_gradients.emplace(size, gradient_samples(job, *gradients));
  }

  const MeshChoice chosen = agreed_mesh(job, states);
  const MeshShape shape = chosen.mesh;
  const Mesh mesh(job.world(), shape.all_lanes(), blocks, job.backend());
  std::optional<Lane> lane;
  if (shape.lanes > 1) {
    lane.emplace(mesh, shape, blocks, job.backend(), chosen.lane_of);
    // Recipes of several lanes share snapshots of the full-precision stream.
    job.store().set_writer(fmt::format("lane-{}", lane->number()));
  }
  if (job.first()) {
    nlohmann::json event = {{"event", "quantize"},
                            {"program", build_description()},
                            {"ranks", job.world().size()},
                            {"mesh", to_json(chosen, config.recipes)},
                            {"device", job.backend().description()},
                            {"traffic", mesh.traffic()},
                            {"units", total},
                            {"units_done", total - missing}};
    if (!job.device().ranks.is_null()) event["gpus"] = job.device().ranks;
    job.monitor().event(event);
    job.monitor().say(fmt::format(
        "{}: {} x {}, {} of {} units done before; {}, mesh {}, {}{}{}", config.model.string(),
        counted(blocks, "block"), counted(config.recipes.size(), "recipe"), total - missing, total,
        counted(job.world().size(), "rank"), describe(shape), job.backend().description(),
        job.threads_summary().empty() ? "" : fmt::format(" ({})", job.threads_summary()),
        job.world().size() > 1 ? fmt::format(", messages by {}", mesh.traffic()) : ""));
    if (!job.device().sharing.empty()) job.monitor().say(job.device().sharing);
    for (const std::string& note : config.notes) job.monitor().say(note);
    for (const Recipe& recipe : config.recipes) {
      if (recipe.needs.widest_team == 0 || recipe.needs.widest_team >= shape.data) continue;
      job.monitor().say(fmt::format("{}: {} of the {} ranks of a team have work most of the time",
                                    recipe.name, recipe.needs.widest_team, shape.data));
    }
  }

  const DeviceRates rates = rates_here(job);
  const CostModel costs(
      {config, job.model().config(), job.decoder(), rates, job.world().size(), shape});
  job.model_identity().note_outside_blocks();
  if (missing > 0) {
    evaluations.read(job);
    std::vector<std::string> complete;
    for (std::size_t r = 0; r < states.size(); ++r) {
      if (states[r].missing() == 0) complete.push_back(config.recipes[r].name);
    }
    if (!make_products(job, job.world(), complete, evaluations)) return false;
    const nlohmann::json plan = plan_work(job, costs, states, evaluations);
    job.monitor().plan_units(total, total - missing, plan);
    if (job.first()) job.monitor().event({{"event", "plan"}, {"work", plan}});
  }
  std::size_t most_spilled = 0;
  std::set<std::size_t> doubted;
  Schedule schedule{.backend = job.backend(),
                    .mesh = mesh,
                    .lane = lane ? &*lane : nullptr,
                    .model = job.model(),
                    .identity = job.model_identity(),
                    .decoder = job.decoder(),
                    .samples = std::move(samples),
                    .store = job.store(),
                    .budget = job.budget(),
                    .saved_activation_bytes = job.saved_activation_bytes(),
                    .monitor = job.monitor(),
                    .interruption_hours = config.interruption_hours,
                    .waves = chosen.waves,
                    .on_unit =
                        [&](const Recipe& recipe, const QuantizedBlock& block, double seconds) {
                          report_unit(job, recipe, block, seconds, shape.data, most_spilled);
                        },
                    .on_finished =
                        [&](const std::vector<std::size_t>& recipes) {
                          return make_products_meanwhile(job, mesh.team(), recipes, evaluations,
                                                         doubted);
                        },
                    .forward_share = [&](const Step& step) { return costs.forward_share(step); },
                    .gradient_samples =
                        [&](const Needs::Gradients& gradients) {
                          return of_gradients.at({gradients.samples, gradients.sequence_length});
                        }};
  const bool finished = quantize_all(schedule, config.recipes, states);
  for (std::size_t r = 0; r < states.size(); ++r) {
    if (states[r].failure) failures[config.recipes[r].name] = *states[r].failure;
  }
  const Watchdog::Waiting waiting(&job.monitor().watchdog());
  if (job.world().all_reduce_min(finished ? 1 : 0) == 0) return false;
  spread_doubt(job, doubted);
  job.model_identity().join(job.world());
  if (job.first()) remove_unused_snapshots({}, job.store());
  return true;
}

}  // namespace roundhouse
