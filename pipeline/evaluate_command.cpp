#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <span>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/commands.h"
#include "pipeline/job.h"
#include "pipeline/preflight.h"
#include "pipeline/run_files.h"
#include "pipeline/sealed_json.h"
#include "stages/evaluate/perplexity.h"
#include "stages/quantize/quantized_weights.h"

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

bool evaluate_recipes(Job& job, const std::vector<std::string>& recipes,
                      const std::vector<PerplexityTask>& tasks) {
  for (const PerplexityTask& task : tasks) {
    std::optional<Windows> windows;  // read when they are needed
    const nlohmann::json settings =
        job.first() ? settings_of(task, job.inputs()) : nlohmann::json();
    for (const std::string& name : recipes) {
      const std::string identity =
          name == kOriginal ? job.inputs().model
                            : recipe_identity(job.config(), job.inputs(), job.recipe(name));
      // Rank 0's look decides, so that all ranks do the same.
      nlohmann::json results;
      int there = 0;
      if (job.first()) {
        results = read_results(job, name, identity);
        there = results.value("/settings"_json_pointer / task.name, nlohmann::json()) == settings
                    ? 1
                    : 0;
      }
      if (job.world().all_reduce_max(there) != 0) continue;
      if (job.stop_requested()) return false;

      if (!windows) {
        windows =
            read_windows(task, job.tokenizer(), job.text_threads(), job.world(), job.monitor());
      }
      if (name != kOriginal) job.check_content({name});
      job.model_identity().note_outside_blocks();
      job.monitor().phase("perplexity of " + name + " on " + task.name);
      BlockSource weights = original_weights(job.model(), job.shape(), job.backend());
      if (name != kOriginal) {
        weights = [&](int block) {
          return load_quantized_weights(job.model(), job.shape(), job.store(), name, block,
                                        job.backend());
        };
      }
      const Perplexity result =
          measure_perplexity(job.model(), job.shape(), weights, *windows, job.backend(),
                             job.world(), job.budget(), job.monitor());
      job.model_identity().join();
      if (!job.first()) continue;
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
                           {"perplexity", number_or_null(result.perplexity)}});
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
  ActivationBudget budget(default_activation_bytes(session), std::filesystem::temp_directory_path(),
                          backend->is_host_memory() ? nullptr : backend.get());
  report_pin_failure(budget, monitor, world->rank());
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
  if (!evaluate_recipes(job, recipes, tasks)) return kExitStopped;
  if (job.first()) report_run(config.run);
  return 0;
}

}  // namespace roundhouse
