// Checks every hash of a run, or of an export, and that all is there that the run's config asks for. Reads only.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/quote.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/run/export_note.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/results.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/steps/export_step.h"
#include "stages/export/sha256sums.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostFaults = 100;  // of one file or folder
// A start takes exports by lengths and times, without hashing them.
constexpr const char* kWrittenByRun =
    " (the next `roundhouse run` writes it; if it does not, remove the folder first)";
constexpr const char* kMadeByRun = " (the next `roundhouse run` makes it)";

// Whether a figure was measured by what `task`, a name or a file, is now. A file that is gone cannot speak against it.
bool is_template_of(const std::string& measured, const std::string& task) {
  std::error_code error;
  if (is_task_file(task) && !fs::is_regular_file(task, error)) return true;
  return measured == read_task_template(task).identity;
}

// Counts what was looked at and prints what is wrong.
class Verdict {
 public:
  // `faults`: empty if it is whole. What cannot be read is a fault of its own, and ends nothing.
  void look(const fs::path& what, const std::string& remedy,
            const std::function<std::vector<std::string>()>& faults) {
    std::vector<std::string> found;
    try {
      with_file_errors_named([&] { found = faults(); });
    } catch (const std::exception& error) {
      found.emplace_back(error.what());
    }
    ++(found.empty() ? whole_ : wrong_);
    for (std::size_t i = 0; i < std::min(found.size(), kMostFaults); ++i) {
      fmt::print("{}\n", printable_line(what.string() + ": " + found[i] + remedy));
    }
    if (found.size() > kMostFaults) {
      fmt::print("{}\n", printable_line(fmt::format("{}: {} more such faults", what.string(),
                                                    found.size() - kMostFaults)));
    }
    std::fflush(stdout);
  }
  int finish() const {
    fmt::print("{} whole, {} damaged or missing\n", whole_, wrong_);
    return wrong_ == 0 ? 0 : 1;
  }

 private:
  int whole_ = 0;
  int wrong_ = 0;
};

using Faults = std::vector<std::string>;

Faults one_fault(const std::string& why) { return why.empty() ? Faults{} : Faults{why}; }

class RunCheck {
 public:
  RunCheck(const fs::path& run, Verdict& verdict) : run_(run), verdict_(verdict), store_(run) {}

  void check() {
    check_folder_files();
    if (config_) {
      if (found_.identity) set_identities(store_, *config_, found_.identity->inputs);
      list_expected();
    }
    const std::set<std::string> records = records_, exports = exports_;  // what `run` makes
    try {
      with_file_errors_named([&] { list_what_is_there(); });
    } catch (const Error& error) {
      verdict_.look(run_, "", [&] { return Faults{error.what()}; });
    }
    for (const std::string& key : records_) {
      verdict_.look(run_ / (key + ".h5"), records.contains(key) ? kMadeByRun : "",
                    [&] { return one_fault(store_.check(key)); });
    }
    for (const std::string& key : exports_) {
      verdict_.look(run_ / key, exports.contains(key) ? kWrittenByRun : "",
                    [&] { return check_run_export(key); });
    }
    for (const std::string& name : results_) {
      verdict_.look(run_ / results_key(name), measured_.contains(name) ? kMadeByRun : "",
                    [&] { return check_results(name); });
    }
  }

 private:
  void look(const std::string& what, const std::function<Faults()>& faults) {
    verdict_.look(run_ / what, kMadeByRun, faults);
  }

  // Those of which each run has one.
  void check_folder_files() {
    look("identity.json", [&] {
      found_ = read_identity(run_);
      return one_fault(found_.why);
    });
    look("config.yaml", [&] {
      const fs::path file = run_ / "config.yaml";
      if (!fs::is_regular_file(file)) return Faults{"missing"};
      if (found_.identity && xxh3_hex_of_file(file) != found_.identity->config) {
        return Faults{"it is not what was written"};
      }
      config_ = read_run_config(run_);
      return Faults{};
    });
    look(kModelFile, [&] {
      const SealedJson model = read_sealed_json(run_ / kModelFile, kModelFile);
      if (model.object) content_ = model.object->value("content", "");
      return one_fault(model.why);
    });
    JournalCheck journal;
    look("journal.jsonl", [&] {
      journal = check_journal(run_);
      return journal.faults;
    });
    look(kReportFile, [&] { return check_report(journal); });
  }

  Faults check_report(const JournalCheck& journal) {
    const SealedJson note = read_sealed_json(run_ / kReportFile, kReportFile);
    if (!note.object) return {note.why};
    Faults faults;
    for (const auto& [name, hash] : note.object->at("files").items()) {
      const fs::path file = run_ / "report" / name;
      if (!fs::is_regular_file(file)) {
        faults.push_back("report/" + name + ": missing");
      } else if (xxh3_hex_of_file(file) != hash.get<std::string>()) {
        faults.push_back("report/" + name + ": damaged");
      }
    }
    const auto last = note.object->value("journal", "");
    if (std::ranges::find(journal.checks, last) == journal.checks.end()) {
      faults.push_back("journal.jsonl: ends before the line that the report knows");
    }
    return faults;
  }

  void list_expected() {
    for (const std::string& set : calibration_sets_in_use(*config_))
      records_.insert(calibration_key(set));
    for (const Recipe& recipe : config_->recipes) {
      if (const std::optional<RecipeFailure> failure = find_failure(recipe.name, store_)) {
        verdict_.look(
            run_ / "recipes" / recipe.name, " (`roundhouse run --retry-failed` tries it again)",
            [&] { return Faults{"failed at " + failure->place() + ": " + failure->reason}; });
        continue;
      }
      if (recipe.needs.gradients) records_.insert(gradient_windows_key(*recipe.needs.gradients));
      const int blocks = found_.identity ? found_.identity->inputs.blocks : 0;
      for (const std::string& key : record_keys(recipe, blocks)) records_.insert(key);
      for (const std::string& format : config_->export_formats) {
        exports_.insert("export/" + recipe.name + "/" + format);
      }
      measured_.insert(recipe.name);
    }
    if (config_->evaluate_original) measured_.insert(kOriginal);
    if (!config_->evaluations.empty()) results_ = measured_;
  }

  // Whatever else the run has: of recipes that were taken out, snapshots, further formats.
  void list_what_is_there() {
    visit_below(run_, [&](const fs::directory_entry& entry) {
      const fs::path path = entry.path().lexically_relative(run_);
      const std::string key = fs::path(path).replace_extension().generic_string();
      if (path.extension() == ".h5") records_.insert(key);
      const std::string folder = path.begin()->string();
      const auto depth = std::distance(path.begin(), path.end());
      if (folder == "export" && path.filename() == kSums && depth == 4) {
        exports_.insert(path.parent_path().generic_string());
      }
      if (folder == "export" && path.extension() == ".json" && depth == 3) {
        exports_.insert(key);
      }
      if (folder == "results" && path.extension() == ".json") results_.insert(path.stem().string());
      // What a job that was killed had begun to write is no part of the run.
      const std::string ending = path.extension().string();
      return path != "scratch" && ending != ".partial" && ending != ".old";
    });
  }

  // What was made of the run has to be made of what the run is of. What neither of them says (earlier versions did not) is not
  // compared.
  void compare(const std::string& what, const std::string& theirs, const std::string& ours,
               Faults& faults) const {
    if (!theirs.empty() && !ours.empty() && theirs != ours)
      faults.push_back("made " + what + " than the run's");
  }

  // `settings` of a figure that is not what the run's config asks for.
  static std::string why_not(const nlohmann::json& settings) {
    return settings.empty() ? " is missing" : " was measured with other settings than the run's";
  }

  Faults check_run_export(const std::string& key) {
    const ExportCheck check = check_export(run_ / key, key);
    Faults faults = check.faults;
    compare("of another model", check.model, content_, faults);
    if (!config_ || !found_.identity) return faults;
    for (const Recipe& recipe : config_->recipes) {
      for (const std::string& format : config_->export_formats) {
        if (key != "export/" + recipe.name + "/" + format) continue;
        compare("with other settings", check.settings,
                xxh3_hex(export_settings(*config_, found_.identity->inputs, recipe, format)),
                faults);
      }
    }
    return faults;
  }

  Faults check_results(const std::string& name) {
    const SealedJson results = read_results(run_, name);
    Faults faults;
    if (!results.object) {
      faults.push_back(results.why);
      std::error_code none;
      for (const fs::directory_entry& answers :
           fs::directory_iterator(run_ / "results" / name, none))
        faults.push_back(answers.path().lexically_relative(run_).string() +
                         ": cannot be checked without the figures");
      return faults;
    }
    if (!measured_.contains(name)) return faults;  // of a recipe that was taken out
    compare("of another model", results.object->value("model", ""), content_, faults);
    if (found_.identity) {
      const RunInputs& inputs = found_.identity->inputs;
      std::string identity = inputs.model;
      for (const Recipe& recipe : config_->recipes) {
        if (recipe.name == name) identity = recipe_identity(*config_, inputs, recipe);
      }
      compare("with other settings", results.object->value("identity", ""), identity, faults);
    }
    for (const PerplexityTask& task : config_->evaluations.perplexity) {
      const nlohmann::json settings =
          results.object->value("/settings"_json_pointer / task.name, nlohmann::json::object());
      const bool same =
          settings.value("window", 0) == task.window && settings.value("limit", -1) == task.limit &&
          settings.value("rows", !task.rows) == task.rows &&
          settings.value("kl", false) == (config_->evaluations.kl && name != kOriginal);
      if (!same) faults.push_back("the figure of " + task.name + why_not(settings));
    }
    for (const TaskOptions& task : config_->evaluations.tasks) {
      const nlohmann::json settings =
          results.object->value("/settings"_json_pointer / task.name, nlohmann::json::object());
      const bool same = is_template_of(settings.value("template", ""), task.task) &&
                        settings.value("limit", -1) == task.limit &&
                        settings.value("protocol", "") == name_of(config_->evaluations.protocol);
      if (!same) faults.push_back("what was measured on " + task.name + why_not(settings));
    }
    const nlohmann::json answers = results.object->value("answers", nlohmann::json::object());
    for (const auto& [task, hash] : answers.items()) {
      const fs::path file = answers_path(run_, name, task);
      if (!fs::is_regular_file(file)) {
        faults.push_back(file.lexically_relative(run_).string() + ": missing");
      } else if (xxh3_hex_of_file(file) != hash.get<std::string>()) {
        faults.push_back(file.lexically_relative(run_).string() + ": damaged");
      }
    }
    return faults;
  }

  fs::path run_;
  Verdict& verdict_;
  Hdf5Store store_;
  FoundIdentity found_;
  std::string content_;  // ModelIdentity::content(), of model.json
  std::optional<RunConfig> config_;
  std::set<std::string> records_, exports_, results_;  // keys; of results the names
  std::set<std::string> measured_;                     // whose results the config asks for
};

}  // namespace

int verify_command(const fs::path& target) {
  Verdict verdict;
  if (!fs::is_directory(target)) throw InputError(target.string() + " is not a folder");
  // An export may carry any file of its model along, so its list of hashes decides first.
  const bool run =
      !fs::exists(target / kSums) &&
      std::ranges::any_of(std::vector<std::string>{"identity.json", "config.yaml", "journal.jsonl"},
                          [&](const std::string& name) { return fs::exists(target / name); });
  if (run) {
    RunCheck(target, verdict).check();
  } else if (fs::exists(target / kSums)) {
    verdict.look(target, "", [&] {
      // An export in a run's folder, or where --output put it, has its note beside it.
      const fs::path directory = fs::absolute(target).lexically_normal();
      const fs::path whole = directory.has_filename() ? directory : directory.parent_path();
      const std::string key =
          "export/" + whole.parent_path().filename().string() + "/" + whole.filename().string();
      return fs::exists(export_note_path(whole)) ? check_export(whole, key).faults
                                                 : verify_checkpoint(whole);
    });
  } else {
    throw InputError(target.string() +
                     " is neither a run (no config.yaml) nor an export (no SHA256SUMS)");
  }
  return verdict.finish();
}

}  // namespace roundhouse
