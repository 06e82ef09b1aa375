#include <cstdio>

#include <fmt/format.h>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/quote.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/run_files.h"
#include "pipeline/start/preflight.h"
#include "pipeline/start/scratch.h"
#include "pipeline/steps/evaluate_step.h"
#include "pipeline/steps/report_step.h"

namespace roundhouse {
namespace {

// A Hugging Face directory: nothing is written, the figures are printed.
int evaluate_model(LaunchSession& session, const EvaluateArguments& arguments) {
  const Evaluations& evaluations = arguments.evaluations;
  if (evaluations.empty())
    throw InputError("evaluate: a model needs --text FILE, or --task and --file");
  if (!arguments.recipes.empty()) {
    throw InputError("evaluate: --recipe is for runs, and " + arguments.target.string() +
                     " is not the folder of one");
  }
  const auto world = session.world();
  const CausalLM model(arguments.target);
  const auto tokenizer = load_tokenizer(arguments.target);
  const DeviceChoice device = choose_device("auto", session.local_size(), *world);
  const RankThreads own = rank_threads(0, session);
  JobMonitor monitor(*world, nullptr, 600, 0);  // goes after all that takes long to go
  const auto backend = make_rank_backend(device, own.threads, /*cpu_bf16=*/false);
  const std::int64_t longest = longest_sequence(evaluations, model.config());
  if (longest > model.config().max_positions) {
    throw InputError(fmt::format("--window {}: the model has only {} positions", longest,
                                 model.config().max_positions));
  }
  const auto decoder = make_decoder_block(model.config(), longest, *backend);
  ActivationBudget budget(default_activation_bytes(session),
                          local_scratch(std::filesystem::temp_directory_path()),
                          backend->is_host_memory() ? nullptr : backend.get());
  report_pin_failure(budget, monitor);
  if (world->rank() == 0 && !device.sharing.empty()) monitor.say(device.sharing);
  ThreadPool threads(world->rank() == 0 ? own.threads : 1);
  if (world->rank() == 0) {
    check_evaluation(evaluations, *tokenizer, threads, [&] { monitor.tick(); });
    say_tokenizer(*tokenizer, monitor);
  }
  const std::vector<Evaluation> all =
      read_evaluations(evaluations, model.config(), *tokenizer, threads, *world, monitor);
  std::vector<const Evaluation*> wanted;
  for (const Evaluation& evaluation : all) wanted.push_back(&evaluation);
  monitor.phase("evaluation");
  const ModelWalk walk{.model = model,
                       .decoder = *decoder,
                       .reference = {},
                       .weights = original_weights(model, *decoder, *backend),
                       .backend = *backend,
                       .group = *world,
                       .budget = budget,
                       .monitor = monitor,
                       .shape = choose_walk(wanted, {}, model, *decoder, *backend,
                                            session.local_size(), budget, *world)};
  const auto print = [](const Evaluation& evaluation, const EvaluationFigures& figures) {
    if (evaluation.is_task()) {
      std::printf("%s: %s\n", evaluation.name.c_str(), figures.summary.c_str());
    } else {
      std::printf("%s: perplexity %.6f (%lld windows of %lld)\n", evaluation.name.c_str(),
                  figures.perplexity.perplexity, static_cast<long long>(figures.perplexity.windows),
                  static_cast<long long>(figures.perplexity.length));
    }
  };
  std::size_t measured = 0;
  const auto facts = measure(
      wanted, {}, walk, [&](std::size_t first, const std::vector<EvaluationFigures>& figures) {
        measured = first + figures.size();
        for (std::size_t i = 0; i < figures.size() && world->rank() == 0; ++i)
          print(*wanted[first + i], figures[i]);
      });
  if (facts) return 0;
  monitor.say("asked to stop before " + wanted[measured]->name + " was measured");
  return kExitStopped;
}

// A figure on the command line must not take the place of one that the run's config names.
void check_names(const Evaluations& asked, const Evaluations& of_run) {
  const auto refuse = [](const std::string& name) {
    throw InputError("evaluate: the run's config measures something else as " + in_quotes(name) +
                     ": give this --name");
  };
  const auto same_file = [](const std::filesystem::path& a, const std::filesystem::path& b) {
    std::error_code ignored;
    return a == b || std::filesystem::equivalent(a, b, ignored);
  };
  for (const PerplexityTask& task : asked.perplexity) {
    for (const PerplexityTask& own : of_run.perplexity) {
      const bool same = same_file(own.text, task.text) && own.window == task.window &&
                        own.limit == task.limit && own.rows == task.rows;
      if (own.name == task.name && !same) refuse(task.name);
    }
    for (const TaskOptions& own : of_run.tasks) {
      if (own.name == task.name) refuse(task.name);
    }
  }
  for (const TaskOptions& task : asked.tasks) {
    for (const TaskOptions& own : of_run.tasks) {
      const bool same_template =
          own.task == task.task || (is_task_file(own.task) && same_file(own.task, task.task));
      const bool same = same_template && same_file(own.file, task.file) &&
                        own.limit == task.limit && asked.protocol == of_run.protocol;
      if (own.name == task.name && !same) refuse(task.name);
    }
    for (const PerplexityTask& own : of_run.perplexity) {
      if (own.name == task.name) refuse(task.name);
    }
  }
}

}  // namespace

int evaluate_command(LaunchSession& session, const EvaluateArguments& arguments) {
  if (!std::filesystem::is_directory(arguments.target))
    throw InputError("evaluate: there is no folder " + in_quotes(arguments.target.string()));
  if (!std::filesystem::exists(arguments.target / "journal.jsonl"))
    return evaluate_model(session, arguments);
  const RunConfig config =
      agreed_config(session, [&] { return read_run_config(arguments.target); });
  const Evaluations& what =
      arguments.evaluations.empty() ? config.evaluations : arguments.evaluations;
  check_names(arguments.evaluations, config.evaluations);
  Job job(session, config, what);
  std::vector<std::string> recipes = arguments.recipes;
  if (recipes.empty()) {
    recipes = complete_recipes_said(job);
    if (config.evaluate_original) recipes.insert(recipes.begin(), kOriginal);
  }
  if (job.first()) {
    check_evaluation(what, job.tokenizer(), job.text_threads(), [&] { job.monitor().tick(); });
  }
  job.model_identity().note_outside_blocks();
  RunEvaluations evaluations(what);
  if (!evaluate_recipes(job, job.world(), recipes, evaluations)) return kExitStopped;
  if (job.first()) report_run(config.run, true);
  return 0;
}

}  // namespace roundhouse
