// The main job: config -> calibrate -> quantize block by block -> export -> evaluate -> report.
#include <cstdlib>

#include "base/exit_code.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/start/preflight.h"
#include "pipeline/steps/evaluate_step.h"
#include "pipeline/steps/products.h"
#include "pipeline/steps/quantize_step.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/watch/peak_memory.h"

namespace roundhouse {
namespace {

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
