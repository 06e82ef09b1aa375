#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <span>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/start/preflight.h"
#include "pipeline/start/scratch.h"
#include "stages/evaluate/perplexity.h"
#include "stages/store/quantized_weights.h"

namespace roundhouse {
namespace {

BlockSource original_weights(const CausalLM& model, const DecoderBlock& shape, Backend& backend) {
  return [&](int block) { return shape.load(model.checkpoint(), block, backend); };
}

// Tokenized by rank 0, for all ranks. Collective.
Windows read_windows(const PerplexityTask& task, const Tokenizer& tokenizer, ThreadPool& threads,
                     Communicator& world, JobMonitor& monitor) {
  Windows windows{.ids = {}, .length = task.window};
  if (world.rank() == 0) {
    monitor.phase("tokens of " + task.text.string());
    windows = evaluation_windows(task, task.limit, tokenizer, threads, [&] { monitor.tick(); });
  }
  const Watchdog::Waiting waiting(&monitor.watchdog());
  auto size = static_cast<std::int64_t>(windows.ids.size());
  world.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  windows.ids.resize(static_cast<std::size_t>(size));
  world.broadcast(std::as_writable_bytes(std::span(windows.ids)), 0);
  return windows;
}

// What a figure depends on besides the weights.
nlohmann::json settings_of(const PerplexityTask& task, const RunInputs& inputs) {
  return {{"window", task.window},
          {"limit", task.limit},
          {"rows", task.rows},
          {"text", xxh3_hex_of_file(task.text)},
          {"tokenizer", inputs.tokenizer}};
}

// JSON has no NaN: a model whose output is not finite has no perplexity.
nlohmann::json number_or_null(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

// The figures of one recipe, or an empty object: there are none, or not of these weights.
nlohmann::json read_results(Job& job, const std::string& name, const std::string& identity) {
  const std::string key = results_key(name);
  const SealedJson sealed = read_sealed_json(job.config().run / key, key);
  if (!sealed.object) {
    if (sealed.why != "missing") job.report_damage(key, sealed.why);
    return nlohmann::json::object();
  }
  const bool ours = sealed.object->value("identity", "") == identity &&
                    sealed.object->value("model", "") == job.model_identity().content();
  return ours ? *sealed.object : nlohmann::json::object();
}

}  // namespace

void EvaluationTexts::read(Job& job) {
  if (windows_.size() == tasks_.size()) return;
  nlohmann::json settings = nlohmann::json::array();
  for (const PerplexityTask& task : tasks_) {
    // Of the text as it is when it is cut into windows, on the one rank that reads it.
    if (job.first()) settings.push_back(settings_of(task, job.inputs()));
    windows_.push_back(
        read_windows(task, job.tokenizer(), job.text_threads(), job.world(), job.monitor()));
  }
  settings_ = nlohmann::json::parse(job.share(settings.dump())).get<std::vector<nlohmann::json>>();
}

nlohmann::json EvaluationTexts::settings(Job& job, std::size_t task) {
  if (settings_.empty()) {
    for (const PerplexityTask& each : tasks_) settings_.push_back(settings_of(each, job.inputs()));
  }
  return settings_[task];
}

bool evaluate_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                      EvaluationTexts& texts) {
  for (std::size_t t = 0; t < texts.tasks().size(); ++t) {
    const PerplexityTask& task = texts.tasks()[t];
    const nlohmann::json settings = group.rank() == 0 ? texts.settings(job, t) : nlohmann::json();
    for (const std::string& name : recipes) {
      const std::string identity =
          name == kOriginal ? job.inputs().model
                            : recipe_identity(job.config(), job.inputs(), job.recipe(name));
      // The look of the group's rank 0 decides, so that all its ranks do the same.
      nlohmann::json results;
      int there = 0;
      if (group.rank() == 0) {
        results = read_results(job, name, identity);
        there = results.value("/settings"_json_pointer / task.name, nlohmann::json()) == settings
                    ? 1
                    : 0;
      }
      if (group.all_reduce_max(there) != 0) continue;
      if (job.stop_requested(group)) return false;

      if (name != kOriginal) job.check_content(group, block_keys(name, job.blocks()));
      if (group.size() == job.world().size()) texts.read(job);
      const auto start = std::chrono::steady_clock::now();
      job.monitor().phase("perplexity of " + name + " on " + task.name);
      BlockSource weights = original_weights(job.model(), job.shape(), job.backend());
      if (name != kOriginal) {
        weights = [&](int block) {
          return load_quantized_weights(job.model(), job.shape(), job.store(), name, block,
                                        job.backend());
        };
      }
      const Perplexity result =
          measure_perplexity(job.model(), job.shape(), weights, texts.windows(t), job.backend(),
                             group, job.budget(), job.monitor());
      job.model_identity().join(group);
      if (group.rank() != 0) continue;
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      results["recipe"] = name;
      results["identity"] = identity;
      results["model"] = job.model_identity().content();
      results["computed_by"][task.name] = job.backend().computes_as();
      results["perplexity"][task.name] = number_or_null(result.perplexity);
      results["windows"][task.name] = result.windows;
      results["settings"][task.name] = settings;
      write_sealed_json(results_path(job.config().run, name), results_key(name), results);
      job.monitor().event({{"event", "perplexity"},
                           {"recipe", name},
                           {"name", task.name},
                           {"windows", result.windows},
                           {"perplexity", number_or_null(result.perplexity)},
                           {"seconds", took.count()},
                           {"ranks", group.size()}});
      char figure[64];
      std::snprintf(figure, sizeof figure, "%.4f (%lld windows)", result.perplexity,
                    static_cast<long long>(result.windows));
      job.monitor().say("perplexity of " + name + " on " + task.name + ": " + figure);
    }
  }
  return true;
}

namespace {

// A Hugging Face directory: nothing is written, the figures are printed.
int evaluate_model(LaunchSession& session, const EvaluateArguments& arguments) {
  if (arguments.perplexity.empty()) throw InputError("evaluate: a model needs --text FILE");
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
  const auto backend = make_rank_backend(device, own.threads);
  std::int64_t longest = 0;
  for (const PerplexityTask& task : arguments.perplexity)
    longest = std::max<std::int64_t>(longest, task.window);
  if (longest > model.config().max_positions) {
    throw InputError("--window " + std::to_string(longest) + ": the model has only " +
                     std::to_string(model.config().max_positions) + " positions");
  }
  const auto shape = make_decoder_block(model.config(), longest, *backend);
  ActivationBudget budget(default_activation_bytes(session),
                          local_scratch(std::filesystem::temp_directory_path()),
                          backend->is_host_memory() ? nullptr : backend.get());
  report_pin_failure(budget, monitor);
  if (world->rank() == 0 && !device.sharing.empty()) monitor.say(device.sharing);
  ThreadPool threads(world->rank() == 0 ? own.threads : 1);
  if (world->rank() == 0) {
    check_evaluation(arguments.perplexity, *tokenizer, threads, [&] { monitor.tick(); });
    say_tokenizer(*tokenizer, monitor);
  }
  for (const PerplexityTask& task : arguments.perplexity) {
    monitor.phase("perplexity on " + task.name);
    const Perplexity result =
        measure_perplexity(model, *shape, original_weights(model, *shape, *backend),
                           read_windows(task, *tokenizer, threads, *world, monitor), *backend,
                           *world, budget, monitor);
    if (world->rank() == 0) {
      std::printf("%s: perplexity %.6f (%lld windows of %lld)\n", task.name.c_str(),
                  result.perplexity, static_cast<long long>(result.windows),
                  static_cast<long long>(result.length));
    }
  }
  return 0;
}

}  // namespace

int evaluate_command(LaunchSession& session, const EvaluateArguments& arguments) {
  if (!std::filesystem::exists(arguments.target / "journal.jsonl"))
    return evaluate_model(session, arguments);
  const RunConfig config =
      agreed_config(session, [&] { return read_run_config(arguments.target); });
  const std::vector<PerplexityTask>& tasks =
      arguments.perplexity.empty() ? config.perplexity : arguments.perplexity;
  Job job(session, config, tasks);
  const std::vector<std::string> complete = complete_recipes(job);
  std::vector<std::string> recipes = arguments.recipes;
  if (recipes.empty()) {
    recipes = complete;
    if (config.evaluate_original) recipes.insert(recipes.begin(), kOriginal);
  }
  if (job.first()) {
    check_evaluation(tasks, job.tokenizer(), job.text_threads(), [&] { job.monitor().tick(); });
  }
  job.model_identity().note_outside_blocks();
  EvaluationTexts texts(tasks);
  if (!evaluate_recipes(job, job.world(), recipes, texts)) return kExitStopped;
  if (job.first()) report_run(config.run, true);
  return 0;
}

}  // namespace roundhouse
