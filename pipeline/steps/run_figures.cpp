#include "pipeline/steps/run_figures.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/file.h"
#include "base/quote.h"
#include "pipeline/config/config.h"
#include "pipeline/json_values.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/run/results.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/steps/journal_facts.h"
#include "stages/store/run_store.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr std::size_t kLongest = 200;
constexpr std::size_t kMostLines = 20;  // about one recipe
constexpr std::size_t kLongestConfig = std::size_t{1} << 20;

std::string last_name(const fs::path& path) {
  const fs::path normal = path.lexically_normal();
  const fs::path name = normal.has_filename() ? normal.filename() : normal.parent_path().filename();
  return printable(name.string(), kLongest);
}

Json object_in(const Json& object, const std::string& key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_object() ? *found : Json::object();
}

void note_name(std::vector<std::string>& names, const std::string& name) {
  if (std::ranges::find(names, name) == names.end()) names.push_back(name);
}

// "gptq-w4g128-symmetric" is "gptq symmetric": a method, and what of its options is not the default.
std::string variant_of(const Recipe& recipe) {
  const std::string begin = recipe.method + "-w";
  if (!recipe.name.starts_with(begin)) return recipe.name;
  std::string rest = recipe.name.substr(begin.size());
  const std::size_t end = rest.find_first_not_of("0123456789.g");
  if (end == std::string::npos) return recipe.method;
  if (rest[end] != '-') return recipe.name;
  return recipe.method + " " + rest.substr(end + 1);
}

// The settings of each figure, by text or task, then by row.
using Measured = std::map<std::string, std::map<std::string, Json>>;

class Reader {
 public:
  explicit Reader(const fs::path& run)
      : folder_(run), store_(run), config_(read_run_config(run)), identity_(read_identity(run)) {
    blocks_ = identity_.identity ? std::clamp(identity_.identity->inputs.blocks, 0, 100'000) : 0;
    journal_ = read_journal_facts(read_journal(run), blocks_);
    made_.run.name = last_name(run);
    made_.run.model = last_name(config_.model);
    made_.model = identity_.identity ? identity_.identity->inputs.model : "";
    made_.run.remarks = journal_.remarks;
  }

  RunFigures read() {
    for (const PerplexityTask& text : config_.evaluations.perplexity)
      note_name(made_.texts, text.name);
    for (const TaskOptions& task : config_.evaluations.tasks) note_name(made_.tasks, task.name);
    const bool original = fs::exists(results_path(folder_, kOriginal));
    if (original) {
      made_.rows.push_back(row(kOriginal));
      made_.rows.back().bits_per_weight = 16;
    }
    for (const Recipe& recipe : config_.recipes) add(recipe);
    if (config_.evaluate_original) note_missing(kOriginal, original ? &made_.rows[0] : nullptr, {});
    for (const Missing& each : missing_)
      made_.run.missing.push_back(fmt::format("{}: {}", fmt::join(each.names, ", "), each.what));
    note_settings();
    made_.run.spans = std::move(journal_.spans);
    made_.run.transfers = std::move(journal_.transfers);
    note_provenance();
    return std::move(made_);
  }

 private:
  void add(const Recipe& recipe) {
    ReportRow& own = made_.rows.emplace_back(row(recipe.name));
    own.method = recipe.method;
    own.variant = variant_of(recipe);
    own.bits = number_in(recipe.options, "bits");
    own.group_size = integer_in(recipe.options, "group_size", -1);
    own.symmetric = recipe.options.value("symmetric", false);
    own.overridden = !recipe.overrides.empty();
    std::string unfinished;
    const int units = recipe.units(blocks_), done = blocks_done(recipe.name, units);
    if (const std::optional<RecipeFailure> failure = find_failure(recipe.name, store_)) {
      unfinished = "failed at " + failure->place() + ": " + printable(failure->reason, kLongest);
    } else if (done < units)
      unfinished = fmt::format("{} of {} {} are quantized", done, units,
                               recipe.include.empty() ? "blocks" : "units");
    note_missing(recipe.name, &own, unfinished);
    const auto found = journal_.recipes.find(recipe.name);
    if (found == journal_.recipes.end()) return;
    RecipeFacts& facts = found->second;
    own.seconds = facts.seconds;
    own.relative_error = facts.relative_error;
    own.bits_per_weight = facts.bits_per_weight;
    own.sparse_bits_per_weight = facts.sparse_bits_per_weight;
    own.outside_bits_per_weight = facts.outside_bits_per_weight;
    own.phases = std::move(facts.phases);
    own.blocks = blocks_;
    if (blocks_ > 0) own.include = recipe.include;
    own.errors = std::move(facts.errors);
    own.fallbacks = facts.fallbacks;
    for (std::size_t i = 0; i < std::min(facts.lines.size(), kMostLines); ++i)
      made_.run.fallbacks.push_back(recipe.name + ", " + facts.lines[i]);
    if (facts.lines.size() > kMostLines) {
      made_.run.fallbacks.push_back(fmt::format("{}: {} more; journal.jsonl has them all",
                                                recipe.name, facts.lines.size() - kMostLines));
    }
  }

  int blocks_done(const std::string& recipe, int units) const {
    int done = 0;
    std::error_code ignored;
    for (int block = 0; block < units; ++block)
      done += fs::exists(folder_ / (block_key(recipe, block) + ".h5"), ignored) ? 1 : 0;
    return done;
  }

  // The figures among the results.
  ReportRow row(const std::string& name) {
    ReportRow row{.model = made_.run.model, .run = made_.run.name, .name = name};
    const SealedJson sealed = read_results(folder_, name);
    if (!sealed.object && sealed.why != "missing") {
      made_.run.remarks.push_back(results_key(name) + " is damaged (" + sealed.why +
                                  "): `roundhouse run` measures it again");
    }
    const Json results = sealed.object.value_or(Json::object());
    // Named, since items() only refers to them.
    const Json settings = object_in(results, "settings");
    const Json perplexities = object_in(results, "perplexity");
    const Json divergences = object_in(results, "kl");
    const Json tasks = object_in(results, "tasks");
    for (const auto& [what, how] : settings.items()) {
      if (how.is_object()) measured_[printable(what, kLongest)][name] = how;
    }
    for (const auto& [key, value] : perplexities.items()) {
      const std::string text = printable(key, kLongest);
      note_name(made_.texts, text);
      row.perplexity[text] =
          value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
    }
    for (const auto& [key, figures] : divergences.items()) {
      if (!figures.is_object()) continue;
      note_name(made_.texts, printable(key, kLongest));
      row.divergence[printable(key, kLongest)] = number_in(figures, "mean");
    }
    for (const auto& [key, figures] : tasks.items()) {
      if (!figures.is_object()) continue;
      const std::string task = printable(key, kLongest);
      note_name(made_.tasks, task);
      row.tasks[task] = task_figures(task, figures, object_in(settings, key));
    }
    return row;
  }

  static TaskFigures task_figures(const std::string& name, const Json& figures,
                                  const Json& settings) {
    TaskFigures task;
    task.kind = text_in(settings, "template");
    if (task.kind.empty()) task.kind = name;
    if (figures.contains("acc"))
      task.accuracy = {number_in(figures, "acc"), number_in(figures, "acc_stderr")};
    if (figures.contains("acc_norm"))
      task.normalized = {number_in(figures, "acc_norm"), number_in(figures, "acc_norm_stderr")};
    if (figures.contains("word_perplexity"))
      task.word_perplexity = number_in(figures, "word_perplexity");
    const double documents = number_in(figures, "documents");
    if (documents > 0 && documents < 1e15) task.documents = static_cast<std::int64_t>(documents);
    return task;
  }

  // What of a row the config wants and is not there.
  void note_missing(const std::string& name, const ReportRow* row, const std::string& unfinished) {
    std::vector<std::string> unmeasured;
    for (const PerplexityTask& text : config_.evaluations.perplexity) {
      if (!row || !row->perplexity.contains(text.name)) unmeasured.push_back(text.name);
    }
    for (const TaskOptions& task : config_.evaluations.tasks) {
      if (!row || !row->tasks.contains(task.name)) unmeasured.push_back(task.name);
    }
    std::vector<std::string> unexported;
    for (const std::string& format : config_.export_formats) {
      if (name != kOriginal && !fs::is_directory(folder_ / "export" / name / format))
        unexported.push_back(format);
    }
    std::vector<std::string> parts;
    if (!unfinished.empty()) parts.push_back(unfinished);
    if (!unmeasured.empty())
      parts.push_back(fmt::format("not measured: {}", fmt::join(unmeasured, ", ")));
    if (!unexported.empty())
      parts.push_back(fmt::format("not exported: {}", fmt::join(unexported, ", ")));
    if (parts.empty()) return;
    const std::string what = fmt::format("{}", fmt::join(parts, "; "));
    const auto same = std::ranges::find(missing_, what, &Missing::what);
    if (same == missing_.end()) {
      missing_.push_back({what, {name}});
    } else {
      same->names.push_back(name);
    }
  }

  // What of the figures does not compare, and what is of a part of its documents only.
  void note_settings() {
    std::vector<std::string>& remarks = made_.run.remarks;
    for (const auto& [what, by_row] : measured_) {
      const Json& first = by_row.begin()->second;
      made_.settings[what] = first;
      for (const auto& [name, how] : by_row) {
        const std::vector<std::string> differing = differing_settings(how, first, true);
        if (differing.empty()) continue;
        remarks.push_back(
            fmt::format("{}: {} was measured otherwise than {} ({}): they do not compare", what,
                        name, by_row.begin()->first, fmt::join(differing, ", ")));
      }
      if (const int limit = integer_in(first, "limit", 0); limit > 0) {
        remarks.push_back(fmt::format("{}: of the first {} {} only", what, limit,
                                      first.contains("template") ? "documents" : "windows"));
      }
    }
  }

  void note_provenance() {
    const auto add = [&](const char* label, const std::string& value) {
      if (!value.empty()) made_.run.provenance.emplace_back(label, printable(value, 4 * kLongest));
    };
    const auto join = [](const std::set<std::string>& words) {
      return fmt::format("{}", fmt::join(words, ", "));
    };
    add("run", folder_.string());
    add("model", config_.model.string());
    if (identity_.identity) {
      const RunInputs& inputs = identity_.identity->inputs;
      add("model's hash", inputs.model);
      add("blocks", std::to_string(inputs.blocks));
      add("tokenizer's hash", inputs.tokenizer);
      add("calibration text's hash", inputs.calibration_text);
    } else {
      add("identity.json", identity_.why);
    }
    const SealedJson contents = read_sealed_json(folder_ / kModelFile, kModelFile);
    if (contents.object) add("hash of all weights", text_in(*contents.object, "content"));
    add("calibration", config_.calibration.text.string());
    add("program", join(journal_.programs));
    add("hosts", join(journal_.hosts));
    add("Slurm jobs", join(journal_.slurm_jobs));
    add("devices", join(journal_.devices));
    add("GPUs", join(journal_.gpus));
    add("meshes", join(journal_.meshes));
    add("from", journal_.first);
    add("to", journal_.last);
    const fs::path yaml = folder_ / "config.yaml";
    const std::string text = read_text_file(yaml, kLongestConfig);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find('\n', at), text.size());
      made_.run.config += printable(std::string_view(text).substr(at, end - at), 4096) + "\n";
      at = end + 1;
    }
  }

  // The same of several recipes is one line.
  struct Missing {
    std::string what;
    std::vector<std::string> names;
  };

  fs::path folder_;
  Hdf5Store store_;
  RunConfig config_;
  FoundIdentity identity_;
  int blocks_ = 0;
  JournalFacts journal_;
  Measured measured_;
  std::vector<Missing> missing_;
  RunFigures made_;
};

}  // namespace

std::vector<std::string> differing_settings(const Json& settings, const Json& other,
                                            bool same_tokenizer) {
  std::vector<std::string> differing;
  for (const auto& [key, value] : settings.items()) {
    const auto found = other.find(key);
    if (key == "kl" || (key == "tokenizer" && !same_tokenizer)) continue;
    if (found != other.end() && *found == value) continue;
    differing.push_back(
        printable(fmt::format("{} {}, not {}", key, value.dump(),
                              found == other.end() ? std::string("unknown") : found->dump()),
                  kLongest));
  }
  return differing;
}

RunFigures read_run_figures(const fs::path& run) { return Reader(run).read(); }

}  // namespace roundhouse
