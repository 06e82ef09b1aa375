// The configuration as text again.
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "pipeline/config/sections.h"

namespace roundhouse {
namespace {

// Text as YAML and JSON both write it in double quotes.
std::string yaml_text(const std::filesystem::path& path) {
  return nlohmann::json(path.string())
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool has_own_key(const SampleOptions& set) { return set.text_key != SampleOptions().text_key; }

}  // namespace

std::string to_yaml(const RunConfig& config) {
  std::string text;
  const auto line = [&text]<class... T>(fmt::format_string<T...> format, T&&... values) {
    text += fmt::format(format, std::forward<T>(values)...) + "\n";
  };
  line("model: {}", yaml_text(config.model));
  line("run: {}", yaml_text(config.run));
  line("calibration:");
  if (!config.calibration.text.empty()) line("  text: {}", yaml_text(config.calibration.text));
  if (has_own_key(config.calibration))
    line("  text_key: {}", yaml_text(config.calibration.text_key));
  line("  samples: {}", config.calibration.samples);
  line("  sequence_length: {}", config.calibration.sequence_length);
  line("  seed: {}", config.calibration.seed);
  line("  shards: {}", config.calibration.shards);
  line("  drawing: {}", name_of(config.calibration.drawing));
  if (!config.calibrations.empty()) line("calibrations:");
  for (const auto& [name, set] : config.calibrations) {
    // A set without the key has that of the default one.
    const bool key = has_own_key(set) || has_own_key(config.calibration);
    line("  {}: {{{}{}samples: {}, sequence_length: {}, seed: {}, shards: {}, drawing: {}}}",
         yaml_text(name), set.text.empty() ? "" : "text: " + yaml_text(set.text) + ", ",
         key ? "text_key: " + yaml_text(set.text_key) + ", " : "", set.samples, set.sequence_length,
         set.seed, set.shards, name_of(set.drawing));
  }
  line("recipes:");
  for (const Recipe& recipe : config.recipes) {
    std::vector<std::string> pairs = {"name: " + yaml_text(recipe.name),
                                      "method: " + recipe.method};
    if (recipe.calibration != kDefaultCalibration)
      pairs.push_back("calibration: " + yaml_text(recipe.calibration));
    const nlohmann::json written_out = resolved(recipe);
    for (const auto& [key, value] : written_out.items()) {
      if (key != "name" && key != "method") pairs.push_back(key + ": " + value.dump());
    }
    line("  - {{{}}}", fmt::join(pairs, ", "));
  }
  line("mesh: {{lanes: {}, pipeline: {}, data: {}, wave: {}}}", config.lanes, config.pipeline_ranks,
       config.data_ranks, config.wave);
  line("device: {}", config.device);
  if (config.cpu_bf16) line("cpu_precision: bf16");
  if (config.allow_other_device) line("allow_other_device: true");
  line("threads: {}", config.threads);
  line("memory:");
  line("  activations_gib: {}", config.activation_memory_gib);
  line("  saved_activations_gib: {}", config.saved_activation_gib);
  if (!config.scratch.empty()) line("  scratch: {}", yaml_text(config.scratch));
  line("checkpoint: {{interruption_hours: {}}}", config.interruption_hours);
  line("limits: {{stall_seconds: {}, silence_seconds: {}, minutes: {}}}", config.stall_seconds,
       config.silence_seconds, config.time_limit_minutes);
  line("export:");
  line("  formats: [{}]", fmt::join(config.export_formats, ", "));
  line("  for: [{}]", fmt::join(config.export_for, ", "));
  line("  dtype: {}", config.export_dtype ? torch_name_of(*config.export_dtype) : "source");
  line("  shard_gib: {}", config.export_shard_gib);
  line("evaluate:");
  line("  original: {}", config.evaluate_original);
  line("  perplexity:{}", config.evaluations.perplexity.empty() ? " []" : "");
  for (const PerplexityTask& task : config.evaluations.perplexity) {
    line("    - {{name: {}, text: {}, window: {}, limit: {}, rows: {}}}", yaml_text(task.name),
         yaml_text(task.text), task.window, task.limit, task.rows);
  }
  line("  kl: {}", config.evaluations.kl);
  if (!config.evaluations.tasks.empty()) {
    line("  protocol: {}", name_of(config.evaluations.protocol));
    line("  tasks:");
    for (const TaskOptions& task : config.evaluations.tasks) {
      line("    - {{name: {}, template: {}, file: {}, limit: {}}}", yaml_text(task.name),
           is_task_file(task.task) ? yaml_text(task.task) : task.task, yaml_text(task.file),
           task.limit);
    }
  }
  return text;
}

}  // namespace roundhouse
