#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <set>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "pipeline/commands/commands.h"
#include "pipeline/job.h"
#include "pipeline/json_values.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/steps/report_step.h"
#include "pipeline/schedule/recipe_failure.h"
#include "stages/report/report.h"

namespace roundhouse {
namespace {

// The settings of each figure, by text or task, then by row.
using Measured = std::map<std::string, std::map<std::string, nlohmann::json>>;

// The figures of one recipe: perplexities from its results, the rest from the journal (a block that was made twice counts
// as it was made last).
ReportRow row_of(const std::string& name, const std::filesystem::path& run,
                 const std::vector<nlohmann::json>& journal, Measured& measured,
                 std::vector<std::string>& notes) {
  ReportRow row;
  row.name = name;
  const SealedJson sealed = read_sealed_json(results_path(run, name), results_key(name));
  if (!sealed.object && sealed.why != "missing") {
    notes.push_back(results_key(name) + " is damaged (" + sealed.why +
                    "): `roundhouse run` measures it again");
  }
  const nlohmann::json results = sealed.object.value_or(nlohmann::json::object());
  const nlohmann::json perplexities = results.value("perplexity", nlohmann::json::object());
  for (const auto& [text, value] : perplexities.items()) {
    row.perplexity[text] =
        value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
  }
  const nlohmann::json settings = results.value("settings", nlohmann::json::object());
  for (const auto& [what, how] : settings.items()) {
    if (how.is_object()) measured[what][name] = how;
  }
  const nlohmann::json divergences = results.value("kl", nlohmann::json::object());
  for (const auto& [text, figures] : divergences.items()) {
    if (figures.is_object()) row.divergence[text] = number_in(figures, "mean");
  }
  const nlohmann::json tasks = results.value("tasks", nlohmann::json::object());
  for (const auto& [task, figures] : tasks.items()) {
    if (!figures.is_object()) continue;
    if (figures.contains("acc")) {
      row.accuracy[task] = {number_in(figures, "acc"), number_in(figures, "acc_stderr")};
    }
    if (figures.contains("word_perplexity"))
      row.perplexity[task + " (a word)"] = number_in(figures, "word_perplexity");
  }
  std::map<int, nlohmann::json> blocks;
  for (const nlohmann::json& event : journal) {
    if (text_in(event, "event") == "block" && text_in(event, "recipe") == name) {
      blocks[integer_in(event, "block", 0)] = event;
    }
  }
  for (const auto& [block, event] : blocks) {
    row.seconds += number_in(event, "seconds");
    row.relative_error += number_in(event, "relative_error") / static_cast<double>(blocks.size());
    row.bits_per_weight += number_in(event, "bits_per_weight") / static_cast<double>(blocks.size());
    row.sparse_bits_per_weight +=
        number_in(event, "sparse_bits_per_weight") / static_cast<double>(blocks.size());
    const nlohmann::json linears = event.value("linears", nlohmann::json::array());
    for (const nlohmann::json& linear : linears) {
      if (integer_in(linear, "damping_tries", 0) > 1 || linear.contains("fallback") ||
          linear.contains("rounded_rows"))
        ++row.fallbacks;
    }
  }
  return row;
}

// What of the figures does not compare, and what is of a part of its documents only.
void note_settings(const Measured& measured, std::vector<std::string>& notes) {
  for (const auto& [what, by_row] : measured) {
    const nlohmann::json& first = by_row.begin()->second;
    for (const auto& [name, how] : by_row) {
      std::string differing;
      for (const auto& [key, value] : how.items()) {
        if (key == "kl" || first.value(key, nlohmann::json()) == value) continue;
        differing += fmt::format("{}{} {}, not {}", differing.empty() ? "" : ", ", key,
                                 value.dump(), first.value(key, nlohmann::json()).dump());
      }
      if (differing.empty()) continue;
      notes.push_back(fmt::format("{}: {} was measured otherwise than {} ({}): they do not compare",
                                  what, name, by_row.begin()->first, differing));
    }
    if (const int limit = integer_in(first, "limit", 0); limit > 0) {
      notes.push_back(fmt::format("{}: of the first {} {} only", what, limit,
                                  first.contains("template") ? "documents" : "windows"));
    }
  }
}

Report make_report(const std::filesystem::path& run) {
  const RunConfig config = read_run_config(run);
  const std::vector<nlohmann::json> journal = read_journal(run);
  Report report;
  Measured measured;
  report.title = config.model.string() + ", quantized";
  if (std::filesystem::exists(results_path(run, kOriginal))) {
    ReportRow original = row_of(kOriginal, run, {}, measured, report.notes);
    original.bits_per_weight = 16;
    report.rows.push_back(std::move(original));
  }
  Hdf5Store store(run);
  for (const Recipe& recipe : config.recipes) {
    report.rows.push_back(row_of(recipe.name, run, journal, measured, report.notes));
    report.rows.back().method = recipe.method;
    if (const std::optional<RecipeFailure> failure = find_failure(recipe.name, store)) {
      report.notes.push_back(recipe.name + " failed at " + failure->place() + ": " +
                             failure->reason);
    }
  }
  note_settings(measured, report.notes);
  for (const nlohmann::json& event : journal) {
    if (text_in(event, "event") != "other_device") continue;
    report.notes.push_back("blocks were computed by different kinds of device: " +
                           event.value("before", nlohmann::json()).dump() + ", then " +
                           event.value("now", nlohmann::json()).dump());
  }
  for (const ReportRow& row : report.rows) {
    if (row.fallbacks > 0) {
      report.notes.push_back(row.name + ": " + std::to_string(row.fallbacks) +
                             " linears needed a fallback; journal.jsonl says which");
    }
  }
  return report;
}

}  // namespace

void report_run(const std::filesystem::path& run, bool print) {
  const Report report = make_report(run);
  const std::filesystem::path folder = run / "report";
  nlohmann::json hashes;
  const std::map<std::string, std::string> files = {{"results.md", to_markdown(report)},
                                                    {"results.csv", to_csv(report)},
                                                    {"results.tex", to_latex(report)},
                                                    {"index.html", to_html(report)}};
  for (const auto& [name, text] : files) {
    write_text_atomically(folder / name, text);
    hashes[name] = xxh3_hex(text);
  }
  // The journal as the report saw it: lines that are cut off its end later are missed.
  const std::vector<std::string> checks = check_journal(run).checks;
  write_sealed_json(run / kReportFile, kReportFile,
                    {{"files", hashes}, {"journal", checks.empty() ? "" : checks.back()}});
  if (!print) return;
  std::printf("\n%s\nreport: %s\n", to_text(report).c_str(),
              (folder / "index.html").string().c_str());
  std::fflush(stdout);
}

int report_command(const std::vector<std::filesystem::path>& runs) {
  for (const std::filesystem::path& run : runs) report_run(run, true);
  return 0;
}

}  // namespace roundhouse
