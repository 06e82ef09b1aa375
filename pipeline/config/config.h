// The configuration of a run: YAML, every key checked, unknown keys refused with file and line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stages/calibrate/samples.h"
#include "stages/evaluate/tasks.h"
#include "stages/export/export.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

struct PerplexityTask {
  std::string name;            // a key in the results: "test", "wikitext2"
  std::filesystem::path text;  // plain text, read whole
  int window = 2048;           // tokens
  int limit = 0;               // windows at most; 0: all
  bool rows = false;           // each line is a row of a data set: see join_rows()
};

// All that is measured of a model. Names are different among all of them.
struct Evaluations {
  std::vector<PerplexityTask> perplexity;
  std::vector<TaskOptions> tasks;
  Protocol protocol = Protocol::kLmEval;
  bool kl = false;  // the texts of perplexities, too: how far a recipe is from the original

  bool empty() const { return perplexity.empty() && tasks.empty(); }
};

struct RunConfig {
  // What changes the result. Hashed into every file; a resume that differs is refused.
  std::filesystem::path model;
  SampleOptions calibration;                          // the set named kDefaultCalibration
  std::map<std::string, SampleOptions> calibrations;  // further sets, by name
  std::vector<Recipe> recipes;     // each hashed by itself: they may be added to a run or taken out
  bool cpu_bf16 = false;           // cpu_precision: of large products on a CPU
  std::vector<std::string> notes;  // for people: what was made of a sweep

  // What changes where, how fast and what for.
  std::filesystem::path run;  // the run's folder
  int lanes = 0;              // mesh: {lanes: L, pipeline: P, data: D}; 0: chosen
  int pipeline_ranks = 0;
  int data_ranks = 0;
  int wave = 0;  // mesh.wave: recipes that go through the model together, at most; 0: chosen
  std::string device = "auto";       // auto, cpu or cuda
  bool allow_other_device = false;   // go on with blocks that another kind of device computed
  int threads = 0;                   // a rank; 0: this node's processors shared by its ranks
  double activation_memory_gib = 0;  // of host memory, a rank; 0: its share of half of what is free
  double saved_activation_gib =
      0;  // of device memory, a rank; 0: its share of a quarter of what is free
  std::filesystem::path scratch;  // where activations go beyond it; empty: local_scratch()
  double interruption_hours = 4;  // expected between two interruptions: for snapshots; 0: none
  double stall_seconds = 600;     // a job in which no rank makes progress for so long ends
  double silence_seconds = 30;    // and one of which a rank gives no sign of life for so long
  double time_limit_minutes = 0;  // stop cleanly (exit code 75) after this; 0: none

  std::vector<std::string> export_formats;
  std::vector<std::string> export_for;  // engines that must load what is exported
  std::optional<DType> export_dtype;    // nothing: that of the checkpoint
  double export_shard_gib = 5;
  Evaluations evaluations;
  bool evaluate_original = true;
};

// Of a recipe, or of any set by its name.
const SampleOptions& calibration_set(const RunConfig& config, const std::string& name);
// Sets whose activations some recipe looks at.
std::vector<std::string> calibration_sets_in_use(const RunConfig& config);
// Into as many shards is the largest of them cut, and the default one: as many ranks have work at once.
int most_shards(const RunConfig& config);

// Fit to be part of a path below the run's folder: letters, digits, '-', '.' and '_', not '.' first, 100 at most.
bool is_plain_name(const std::string& name);

// Parses FILE, then applies `key=value` overrides ("calibration.samples=64", "mesh.data=2",
// "recipes=[{method: rtn}]"). Throws InputError "file:line: key: what is wrong". Checks everything
// that can be checked without reading the model: types, ranges, recipes, duplicate recipe names,
// that files exist.
RunConfig read_config(const std::filesystem::path& file, const std::vector<std::string>& overrides);

// The same for a plan: the files that it names may be elsewhere, or not there yet.
RunConfig read_config_of_plan(const std::filesystem::path& file,
                              const std::vector<std::string>& overrides);

// RUN/config.yaml, of a run that may have been moved (its folder is `run`) and whose model and
// texts may be gone by now.
RunConfig read_run_config(const std::filesystem::path& run);

// The whole config with every default written out, as YAML that read_config() reads back to the
// same.
std::string to_yaml(const RunConfig& config);

// The settings that change results, as flat "key: value" pairs ("calibration.seed" -> "42";
// "recipes.NAME" -> its JSON), for hashing and for naming what differs. Files are not among them:
// what they hold counts, not what they are called (RunInputs).
std::map<std::string, std::string> result_keys(const RunConfig& config);

// The keys that both have with other values, each as "key: was X, is Y". Recipes that only one side
// has do not count.
std::vector<std::string> differences(const std::map<std::string, std::string>& was,
                                     const std::map<std::string, std::string>& is);

// What the `export` section says, for one of its formats.
ExportOptions export_options(const RunConfig& config, const std::string& format);

}  // namespace roundhouse
