#include "pipeline/config/config.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/file_name.h"
#include "pipeline/config/overrides.h"
#include "pipeline/config/sections.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxRanks = 100'000, kMostRecipesOfAWave = 1000;

RunConfig read_tree(const YamlNode& root, const std::string& file, InputFiles files) {
  RunConfig config;
  Section top(&root, "", file);

  config.model = top.required_text("model");
  std::error_code ignored;
  if (files == InputFiles::kMustExist &&
      !fs::is_regular_file(config.model / "config.json", ignored)) {
    fail(top.where("model"), "model",
         "there is no file " + in_quotes((config.model / "config.json").string()));
  }
  config.run = top.required_text("run");
  if (fs::exists(config.run, ignored) && !fs::is_directory(config.run, ignored)) {
    fail(top.where("run"), "run", "is not a folder: " + in_quotes(config.run.string()));
  }
  if (fs::equivalent(config.run, config.model, ignored)) {
    fail(top.where("run"), "run", "is the folder of the model: choose another one");
  }
  const SetOfMethod sets = read_calibrations(top, files, config);
  read_recipes(top, sets, config);
  check_calibrations(top, config);

  Section mesh = top.section("mesh");
  config.lanes = mesh.integer("lanes", config.lanes, 0, kMaxRanks);
  config.pipeline_ranks = mesh.integer("pipeline", config.pipeline_ranks, 0, kMaxRanks);
  config.data_ranks = mesh.integer("data", config.data_ranks, 0, kMaxRanks);
  config.wave = mesh.integer("wave", config.wave, 0, kMostRecipesOfAWave);
  mesh.finish();
  config.device = top.one_of("device", config.device, {"auto", "cpu", "cuda"});
  config.cpu_bf16 = top.one_of("cpu_precision", "f32", {"f32", "bf16"}) == "bf16";
  config.allow_other_device = top.boolean("allow_other_device", config.allow_other_device);
  config.threads = top.integer("threads", config.threads, 0, 4096);

  Section memory = top.section("memory");
  config.activation_memory_gib =
      memory.number("activations_gib", config.activation_memory_gib, 0, 1e6);
  config.saved_activation_gib =
      memory.number("saved_activations_gib", config.saved_activation_gib, 0, 1e6);
  config.scratch = memory.text("scratch", "");
  memory.finish();

  Section checkpoint = top.section("checkpoint");
  config.interruption_hours =
      checkpoint.number("interruption_hours", config.interruption_hours, 0, 1e6);
  checkpoint.finish();

  Section limits = top.section("limits");
  config.stall_seconds = limits.number("stall_seconds", config.stall_seconds, 1, 1e7);
  config.silence_seconds = limits.number("silence_seconds", config.silence_seconds, 2, 1e7);
  config.time_limit_minutes = limits.number("minutes", config.time_limit_minutes, 0, 1e7);
  limits.finish();

  read_export(top.section("export"), files, config);
  read_evaluate(top.section("evaluate"), files, config);
  top.finish();
  return config;
}

YamlNode read_file(const fs::path& file) {
  const std::string name = file.string();
  return parse_yaml(read_text_file(file, kMostYamlBytes),
                    [&](int line) { return line > 0 ? fmt::format("{}:{}", name, line) : name; });
}

}  // namespace

bool is_plain_name(const std::string& name) { return is_file_name(name); }

RunConfig read_config(const fs::path& file, const std::vector<std::string>& overrides) {
  YamlNode root = read_file(file);
  for (const std::string& assignment : overrides) apply_override(root, assignment);
  return read_tree(root, file.string(), InputFiles::kMustExist);
}

RunConfig read_config_of_plan(const fs::path& file, const std::vector<std::string>& overrides) {
  YamlNode root = read_file(file);
  for (const std::string& assignment : overrides) apply_override(root, assignment);
  return read_tree(root, file.string(), InputFiles::kMayBeGone);
}

RunConfig read_run_config(const fs::path& run) {
  const fs::path file = run / "config.yaml";
  RunConfig config = read_tree(read_file(file), file.string(), InputFiles::kMayBeGone);
  config.run = run;
  return config;
}

const SampleOptions& calibration_set(const RunConfig& config, const std::string& name) {
  return name == kDefaultCalibration ? config.calibration : config.calibrations.at(name);
}

std::vector<std::string> calibration_sets_in_use(const RunConfig& config) {
  std::vector<std::string> names;
  for (const Recipe& recipe : config.recipes) {
    if (recipe.needs.streams() && std::ranges::find(names, recipe.calibration) == names.end())
      names.push_back(recipe.calibration);
  }
  std::ranges::sort(names);
  return names;
}

int most_shards(const RunConfig& config) {
  int shards = config.calibration.shards;
  for (const std::string& set : calibration_sets_in_use(config))
    shards = std::max(shards, calibration_set(config, set).shards);
  return shards;
}

namespace {
constexpr const char* kCpuPrecision = "cpu_precision";  // a key only where it is not f32
}  // namespace

std::map<std::string, std::string> result_keys(const RunConfig& config) {
  std::map<std::string, std::string> keys;
  const auto add = [&](const std::string& prefix, const SampleOptions& set) {
    keys[prefix + ".samples"] = std::to_string(set.samples);
    keys[prefix + ".sequence_length"] = std::to_string(set.sequence_length);
    keys[prefix + ".seed"] = std::to_string(set.seed);
    keys[prefix + ".shards"] = std::to_string(set.shards);
    keys[prefix + ".drawing"] = name_of(set.drawing);
    if (set.text_key != SampleOptions().text_key) keys[prefix + ".text_key"] = set.text_key;
  };
  // Without calibration text no recipe uses any of this, and a text may be added later.
  if (!config.calibration.text.empty()) add("calibration", config.calibration);
  for (const std::string& name : calibration_sets_in_use(config)) {
    if (name != kDefaultCalibration) add("calibrations." + name, calibration_set(config, name));
  }
  for (const Recipe& recipe : config.recipes) {
    nlohmann::json settings = resolved(recipe);
    if (recipe.calibration != kDefaultCalibration) settings["calibration"] = recipe.calibration;
    keys["recipes." + recipe.name] = settings.dump();
  }
  if (config.cpu_bf16) keys[kCpuPrecision] = "bf16";
  return keys;
}

std::vector<std::string> differences(const std::map<std::string, std::string>& was,
                                     const std::map<std::string, std::string>& is) {
  std::vector<std::string> lines;
  for (const auto& [key, value] : is) {
    const auto before = was.find(key);
    if (before == was.end() || before->second == value) continue;
    lines.push_back(fmt::format("{}: was {}, is {}", key, before->second, value));
  }
  if (was.contains(kCpuPrecision) != is.contains(kCpuPrecision)) {
    const bool now = is.contains(kCpuPrecision);
    lines.push_back(fmt::format("{}: was {}, is {}", kCpuPrecision, now ? "f32" : "bf16",
                                now ? "bf16" : "f32"));
  }
  // A text's key is among them only where it is another than "text".
  constexpr std::string_view kSamples = ".samples";
  for (const auto& [key, value] : is) {
    if (!key.ends_with(kSamples) || !was.contains(key)) continue;
    const std::string text_key = key.substr(0, key.size() - kSamples.size()) + ".text_key";
    const auto in = [&](const std::map<std::string, std::string>& keys) {
      const auto found = keys.find(text_key);
      return found != keys.end() ? found->second : SampleOptions().text_key;
    };
    if (was.contains(text_key) != is.contains(text_key))
      lines.push_back(fmt::format("{}: was {}, is {}", text_key, in(was), in(is)));
  }
  return lines;
}

ExportOptions export_options(const RunConfig& config, const std::string& format) {
  return {.format = format,
          .dtype = config.export_dtype,
          .max_shard_bytes = static_cast<std::int64_t>(config.export_shard_gib * 0x1p30)};
}

}  // namespace roundhouse
