// The main job: config -> calibrate -> quantize block by block -> export -> evaluate -> report.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "base/exit_code.h"
#include "base/quote.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/plan/mesh_choice.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/start/preflight.h"
#include "pipeline/steps/evaluate_step.h"
#include "pipeline/steps/products.h"
#include "pipeline/steps/quantize_step.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/watch/peak_memory.h"

namespace roundhouse {
namespace {

// Refuses what cannot end well, before any work is done and the run folder has its settings.
void check_beforehand(Job& job) {
  job.monitor().phase("looking at texts, disk and memory");
  agree(job.world(), [&] { check_memory(job.model().config(), job.backend()); });
  if (!job.first()) return;
  check_named_mesh(job.config(), job.world().size(), job.blocks());
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

// Has those that failed before tried again.
void forget_all_failures(Job& job) {
  if (job.first()) {
    for (const Recipe& recipe : job.config().recipes) {
      if (!forget_failures(recipe.name, job.store())) continue;
      job.monitor().say(recipe.name + " failed before: tried again");
      job.monitor().event({{"event", "retry"}, {"recipe", recipe.name}});
    }
  }
  job.world().barrier();
}

// For people, beside the report: what could not be made, and why.
void print_failures(const Failures& failures, std::size_t recipes) {
  std::size_t width = 0;
  for (const auto& [name, failure] : failures) width = std::max(width, name.size());
  fmt::print("\nfailed:\n");
  for (const auto& [name, failure] : failures) {
    fmt::print("  {:<{}}  {:<15}  {}\n", name, width, failure.place(),
               printable_line(failure.reason));
  }
  fmt::print(
      "{} of {} recipes failed, and would again; the others are done. `roundhouse run CONFIG "
      "--retry-failed` tries them again\n",
      failures.size(), recipes);
  std::fflush(stdout);
}

int make_all(Job& job, RunEvaluations& evaluations) {
  const RunConfig& config = job.config();
  Failures failures;
  if (!quantize(job, evaluations, failures)) return stopped(job);

  // Of the last recipes, by all ranks together.
  std::vector<std::string> names = job.recipe_names();
  std::erase_if(names, [&](const std::string& name) { return failures.contains(name); });
  if (config.evaluate_original) names.insert(names.begin(), kOriginal);
  if (!make_products(job, job.world(), names, evaluations)) return stopped(job);

  std::vector<std::string> records;
  for (const Recipe& recipe : config.recipes) {
    if (failures.contains(recipe.name)) continue;
    for (std::string& key : record_keys(recipe, job.blocks())) records.push_back(std::move(key));
  }
  job.check_content(job.world(), records);
  const std::int64_t sent = job.world().all_reduce_sum(static_cast<std::int64_t>(job.sent_bytes()));
  if (job.first()) {
    nlohmann::json event = {
        {"event", "done"}, {"peak_memory_mib", peak_memory_mib()}, {"sent_bytes", sent}};
    for (const auto& [name, failure] : failures) event["failed"].push_back(name);
    job.monitor().event(event);
    report_run(config.run, true);
    if (!failures.empty()) print_failures(failures, config.recipes.size());
  }
  return failures.empty() ? kExitDone : kExitFailed;
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

int run_command(LaunchSession& session, const RunConfig& config, bool retry_failed) {
  Job job(session, config, config.evaluations, Job::Access::kHolds, check_beforehand);
  if (retry_failed) forget_all_failures(job);
  const int exit_code = make_until_whole(job);
  journal_end(job, exit_code);
  return exit_code;
}

}  // namespace roundhouse
