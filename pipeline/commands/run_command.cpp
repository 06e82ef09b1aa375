// The main job: config -> calibrate -> quantize block by block -> export -> evaluate -> report.
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "base/exit_code.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/gradient_recipes.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/start/agreement.h"
#include "pipeline/start/preflight.h"
#include "pipeline/start/scratch.h"
#include "pipeline/steps/evaluate_step.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/watch/time_left.h"

namespace roundhouse {
namespace {

double peak_memory_mib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

// Token ids for all ranks: from the store's record `key`, or drawn by rank 0 and committed.
Samples calibrate(Job& job, const std::string& key, const SampleOptions& options) {
  job.monitor().phase("calibration: token windows");
  std::string ids;
  if (job.first()) {
    std::optional<Record> record = job.store().load(key);
    if (!record) {
      const DrawnSamples drawn =
          draw_samples(options, job.tokenizer(), job.text_threads(), job.monitor());
      record = to_record(drawn.samples);
      job.store().commit(key, *record);
      nlohmann::json event = drawn.facts;
      event["event"] = "calibration";
      event["samples"] = drawn.samples.count();
      event["tokens"] = drawn.samples.length();
      job.monitor().event(event);
    }
    const HostTensor& tensor = record->tensors.at("ids");
    ids.assign(reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size());
  }
  {
    const Watchdog::Waiting waiting(&job.monitor().watchdog());
    ids = job.share(std::move(ids));
  }
  std::vector<std::int32_t> values(ids.size() / sizeof(std::int32_t));
  std::ranges::copy(ids, reinterpret_cast<char*>(values.data()));
  return Samples(options.samples, options.sequence_length, options.shards, std::move(values));
}

// Of which gradients are: from the calibration's text, cut into as many shards.
Samples gradient_samples(Job& job, const Needs::Gradients& gradients) {
  SampleOptions options = job.config().calibration;
  options.samples = gradients.samples;
  options.sequence_length = gradients.sequence_length;
  options.keys = "gradients";
  return calibrate(job, gradient_windows_key(gradients), options);
}

// Blocks whose gradients any of these recipes waits for.
int gradient_blocks(const std::vector<Recipe>& recipes, const std::vector<RecipeState>& states,
                    const std::vector<std::size_t>& users) {
  int count = 0;
  for (std::size_t block = 0; block < states.front().done.size(); ++block) {
    count += std::ranges::any_of(users, [&](std::size_t r) {
      return !recipes[r].needs.makes_blocks_of_gradients() || !states[r].done[block];
    });
  }
  return count;
}

// What is left to do, for TimeLeft: of recipes that are not finished, and of the original. The same on all ranks.
nlohmann::json plan_work(Job& job, const std::vector<RecipeState>& states,
                         const RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  const ModelConfig& model = job.model().config();
  nlohmann::json plan = nlohmann::json::object();
  int unfinished = 0;
  for (std::size_t r = 0; r < states.size(); ++r) {
    const Recipe& recipe = config.recipes[r];
    if (states[r].missing() == 0) continue;
    ++unfinished;
    plan["block " + recipe.name] = {
        {"cost", block_cost(*make_method(recipe), job.shape(), config.calibration,
                            !job.backend().is_host_memory())},
        {"left", states[r].missing()}};
  }
  for (const auto& [size, recipes] : gradient_users(config.recipes, states)) {
    plan[fmt::format("gradients {}x{}", size.first, size.second)] = {
        {"cost", gradient_cost(job.shape(), size.first, size.second)},
        {"left", gradient_blocks(config.recipes, states, recipes)}};
  }
  for (const std::string& format : config.export_formats) {
    plan["export " + format] = {{"cost", export_cost(model, job.shape())}, {"left", unfinished}};
  }
  for (std::size_t t = 0; t < evaluations.size(); ++t) {
    const Evaluation& evaluation = evaluations.at(t);
    plan[(evaluation.is_task() ? "task " : "perplexity ") + evaluation.name] = {
        {"cost", perplexity_cost(model, job.shape(), evaluation.tokens())},
        {"left", unfinished + (config.evaluate_original ? 1 : 0)}};
  }
  return plan;
}

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
    job.monitor().say("activations: " + std::to_string(spilled >> 20) + " MiB of them are in " +
                      scratch_folder(job.config()).string() +
                      ", since memory.activations_gib has no more room");
  }
  job.monitor().event(event);

  char text[64] = "";
  if (norm > 0) std::snprintf(text, sizeof text, ", error %.2e", error / norm);
  job.monitor().unit_done(recipe.name + " block " + std::to_string(block.block) + text, seconds);
}

// Blocks are made on the same kind of device as those before: another computes other last bits.
void settle_device(Job& job, const std::vector<RecipeState>& states) {
  const std::string mine = job.backend().computes_as();
  std::set<std::string> now, before;
  for (const auto& bytes : job.world().all_gather(std::as_bytes(std::span(mine)))) {
    now.emplace(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  for (const RecipeState& state : states) {
    if (!state.complete()) before.insert(state.computed_by.begin(), state.computed_by.end());
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

// What is made of finished recipes (or kOriginal). Collective over `group`; false if it stopped early.
bool make_products(Job& job, Communicator& group, const std::vector<std::string>& names,
                   RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  for (const std::string& name : names) {
    if (name != kOriginal &&
        !export_recipes(job, group, {name}, config.export_formats, config.run / "export")) {
      return false;
    }
    if (!evaluate_recipes(job, group, {name}, evaluations)) return false;
  }
  return true;
}

// The same of recipes that have become finished while others are quantized, by the team that they were given to.
// `doubted` gets those whose blocks are not all whole any more.
bool make_products_meanwhile(Job& job, Communicator& team, const std::vector<std::size_t>& recipes,
                             RunEvaluations& evaluations, std::set<std::size_t>& doubted) {
  for (const std::size_t index : recipes) {
    const Recipe& recipe = job.config().recipes[index];
    const RecipeState state = inspect_recipe(recipe, job.blocks(), 0, job.store(), team);
    // What is damaged is made again at the end, by all ranks together.
    if (state.missing() > 0 || count_damaged(block_keys(recipe.name, job.blocks()), job.store(),
                                             team, [&] { job.monitor().tick(); }) > 0) {
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
    for (const std::string& key : block_keys(job.config().recipes[r].name, job.blocks())) {
      job.store().doubt(key);
    }
  }
}

// False if it stopped early.
bool quantize(Job& job, RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  const int blocks = job.blocks();
  // What can be refused is refused before anything is computed.
  job.monitor().phase("looking for finished blocks");
  std::vector<RecipeState> states;
  std::vector<ContentsByTensor> made_of;
  int missing = 0;
  for (const Recipe& recipe : config.recipes) {
    states.push_back(inspect_recipe(recipe, blocks, config.calibration.shards, job.store(),
                                    job.world(), [&] { job.monitor().tick(); }));
    missing += states.back().missing();
    made_of.push_back(states.back().made_of);
  }
  job.model_identity().settle(made_of);
  if (job.first()) {
    std::vector<std::string> unfinished;
    for (std::size_t r = 0; r < states.size(); ++r) {
      if (states[r].missing() > 0) unfinished.push_back(config.recipes[r].name);
    }
    remove_unused_snapshots(unfinished, job.store());
  }
  const int total = blocks * static_cast<int>(config.recipes.size());

  if (!std::ranges::all_of(states, &RecipeState::complete)) settle_device(job, states);
  std::optional<Samples> samples;
  if (needs_streams(config)) samples.emplace(calibrate(job, "calibration", config.calibration));

  const MeshShape shape = choose_mesh(config.pipeline_ranks, config.data_ranks, job.world().size(),
                                      config.calibration.shards, blocks);
  const Mesh mesh(job.world(), shape, blocks, job.backend());
  if (job.first()) {
    nlohmann::json event = {{"event", "quantize"},
                            {"program", build_description()},
                            {"ranks", job.world().size()},
                            {"mesh", {{"pipeline", shape.pipeline}, {"data", shape.data}}},
                            {"device", job.backend().description()},
                            {"traffic", mesh.traffic()},
                            {"units", total},
                            {"units_done", total - missing}};
    if (!job.device().ranks.is_null()) event["gpus"] = job.device().ranks;
    job.monitor().event(event);
    job.monitor().say(config.model.string() + ": " + std::to_string(blocks) + " blocks x " +
                      std::to_string(config.recipes.size()) + " recipes, " +
                      std::to_string(total - missing) + " of " + std::to_string(total) +
                      " units done before; " + std::to_string(job.world().size()) +
                      (job.world().size() == 1 ? " rank" : " ranks") + ", mesh " +
                      std::to_string(shape.pipeline) + " x " + std::to_string(shape.data) + ", " +
                      job.backend().description() +
                      (job.threads_summary().empty() ? "" : " (" + job.threads_summary() + ")") +
                      (job.world().size() > 1 ? ", messages by " + mesh.traffic() : ""));
    if (!job.device().sharing.empty()) job.monitor().say(job.device().sharing);
    for (const Recipe& recipe : config.recipes) {
      if (recipe.needs.widest_team == 0 || recipe.needs.widest_team >= shape.data) continue;
      job.monitor().say(fmt::format("{}: {} of the {} ranks of a team have work most of the time",
                                    recipe.name, recipe.needs.widest_team, shape.data));
    }
  }

  job.model_identity().note_outside_blocks();
  if (missing > 0) {
    evaluations.read(job);
    std::vector<std::string> complete;
    for (std::size_t r = 0; r < states.size(); ++r) {
      if (states[r].missing() == 0) complete.push_back(config.recipes[r].name);
    }
    if (!make_products(job, job.world(), complete, evaluations)) return false;
    const nlohmann::json plan = plan_work(job, states, evaluations);
    job.monitor().plan_units(total, total - missing, plan);
    if (job.first()) job.monitor().event({{"event", "plan"}, {"work", plan}});
  }
  std::size_t most_spilled = 0;
  std::set<std::size_t> doubted;
  Schedule schedule{
      .backend = job.backend(),
      .mesh = mesh,
      .model = job.model(),
      .identity = job.model_identity(),
      .shape = job.shape(),
      .samples = samples ? &*samples : nullptr,
      .store = job.store(),
      .budget = job.budget(),
      .saved_activation_bytes = job.saved_activation_bytes(),
      .monitor = job.monitor(),
      .interruption_hours = config.interruption_hours,
      .on_unit =
          [&](const Recipe& recipe, const QuantizedBlock& block, double seconds) {
            report_unit(job, recipe, block, seconds, shape.data, most_spilled);
          },
      .on_finished =
          [&](const std::vector<std::size_t>& recipes) {
            return make_products_meanwhile(job, mesh.team(), recipes, evaluations, doubted);
          },
      .gradient_samples =
          [&](const Needs::Gradients& gradients) { return gradient_samples(job, gradients); }};
  const bool finished = quantize_all(schedule, config.recipes, states);
  const Watchdog::Waiting waiting(&job.monitor().watchdog());
  if (job.world().all_reduce_min(finished ? 1 : 0) == 0) return false;
  spread_doubt(job, doubted);
  job.model_identity().join(job.world());
  if (job.first()) remove_unused_snapshots({}, job.store());
  return true;
}

// Refuses what cannot end well, before any work is done.
void check_beforehand(Job& job) {
  job.monitor().phase("looking at texts, disk and memory");
  agree(job.world(), [&] { check_memory(job.model().config(), job.backend()); });
  if (!job.first()) return;
  for (const std::string& line :
       check_evaluation(job.config().evaluations, job.tokenizer(), job.text_threads(),
                        [&] { job.monitor().tick(); })) {
    job.monitor().say(line);
  }
  check_exports(job.config());
  check_disk(job.config(), job.model().config());
}

int stopped(Job& job) {
  if (job.first()) {
    job.monitor().event({{"event", "stopped"}});
    job.monitor().say("stopped as asked, with work left; the same command goes on from here");
  }
  return kExitStopped;
}

int make_all(Job& job, RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  if (!quantize(job, evaluations)) return stopped(job);

  // Of the last recipes, by all ranks together.
  std::vector<std::string> names = job.recipe_names();
  if (config.evaluate_original) names.insert(names.begin(), kOriginal);
  if (!make_products(job, job.world(), names, evaluations)) return stopped(job);

  std::vector<std::string> records;
  for (const Recipe& recipe : config.recipes) {
    for (std::string& key : record_keys(recipe, job.blocks())) records.push_back(std::move(key));
  }
  job.check_content(job.world(), records);
  if (job.first()) {
    job.monitor().event({{"event", "done"}, {"peak_memory_mib", peak_memory_mib()}});
    report_run(config.run, true);
  }
  return kExitDone;
}

// The exit code.
int make_until_whole(Job& job) {
  RunEvaluations evaluations(job.config().evaluations);
  for (;;) {
    try {
      return make_all(job, evaluations);
    } catch (const DamagedRecords&) {
      // On all ranks alike. They are gone, and are made again like all that is missing.
    }
  }
}

// The last thing that the job does. A launcher's exit code is no proof: srun can end with 0 where a task was never started. So a
// batch script names each of its launches in ROUNDHOUSE_LAUNCH, and finds here how the one of that name ended.
void journal_end(Job& job, int exit_code) {
  const char* launch = std::getenv("ROUNDHOUSE_LAUNCH");
  if (!job.first() || launch == nullptr) return;
  job.monitor().event({{"event", "end"}, {"exit_code", exit_code}, {"launch", launch}});
}

}  // namespace

int run_command(LaunchSession& session, const RunConfig& config) {
  Job job(session, config, config.evaluations);
  check_beforehand(job);
  const int exit_code = make_until_whole(job);
  journal_end(job, exit_code);
  return exit_code;
}

}  // namespace roundhouse
