#include "pipeline/steps/report_step.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/file.h"
#include "base/hash.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/run_folder.h"
#include "pipeline/run/sealed_json.h"
#include "pipeline/start/agreement.h"
#include "pipeline/steps/run_figures.h"
#include "pipeline/time_now.h"
#include "stages/report/page.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

void add_names(std::vector<std::string>& names, const std::vector<std::string>& more) {
  for (const std::string& name : more) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  }
}

// Runs of one model share its name; of two models that are called the same, each has its run's.
void name_models(std::vector<RunFigures>& runs) {
  std::map<std::string, std::string> model_of_name;
  for (RunFigures& figures : runs) {
    const std::string& known =
        model_of_name.emplace(figures.run.model, figures.model).first->second;
    if (known == figures.model) continue;
    figures.run.model += " (" + figures.run.name + ")";
    for (ReportRow& row : figures.rows) row.model = figures.run.model;
  }
}

// A model's original is one row, whichever runs measured it; recipes that two runs have keep their runs' names.
void add_row(ReportRow row, std::vector<ReportRow>& rows) {
  const auto same = std::ranges::find_if(rows, [&](const ReportRow& other) {
    return other.model == row.model && other.name == row.name;
  });
  if (same == rows.end()) {
    rows.push_back(std::move(row));
  } else if (row.is_original()) {
    same->perplexity.merge(row.perplexity);
    same->tasks.merge(row.tasks);
  } else {
    row.name += " (" + row.run + ")";
    row.variant += " (" + row.run + ")";
    rows.push_back(std::move(row));
  }
}

// Figures of one text or task that two runs measured by other settings stand in one column.
void note_settings(std::vector<RunFigures>& runs) {
  std::map<std::string, const RunFigures*> first;  // by text or task
  for (RunFigures& figures : runs) {
    for (const auto& [what, settings] : figures.settings) {
      const RunFigures& other = *first.emplace(what, &figures).first->second;
      const std::vector<std::string> differing =
          differing_settings(settings, other.settings.at(what), figures.model == other.model);
      if (differing.empty()) continue;
      figures.run.remarks.push_back(
          fmt::format("{}: measured otherwise than in run {} ({}): they do not compare", what,
                      other.run.name, fmt::join(differing, ", ")));
    }
  }
}

std::map<std::string, std::string> write_files(const Report& report, const fs::path& folder,
                                               StandardErrors errors) {
  std::map<std::string, std::string> files = report_files(report, errors);
  for (const auto& [name, text] : files) write_text_atomically(folder / name, text);
  return files;
}

void print(const Report& report, const fs::path& folder) {
  std::printf("\n%s\nreport: %s\n", to_text(report).c_str(),
              (folder / "index.html").string().c_str());
  std::fflush(stdout);
}

}  // namespace

Report read_report(const std::vector<fs::path>& runs) {
  std::vector<RunFigures> all;
  for (const fs::path& run : runs) all.push_back(read_run_figures(run));
  name_models(all);
  note_settings(all);
  Report report;
  std::vector<std::string> models;
  for (RunFigures& figures : all) {
    add_names(report.texts, figures.texts);
    add_names(report.tasks, figures.tasks);
    add_names(models, {figures.run.model});
    for (ReportRow& row : figures.rows) add_row(std::move(row), report.rows);
    report.runs.push_back(std::move(figures.run));
  }
  for (const std::string& model : models)
    report.title += (report.title.empty() ? "" : ", ") + model;
  report.title += ", quantized";
  report.made = fmt::format("Made {} by Roundhouse {}", time_now(), build_description());
  return report;
}

void report_run(const fs::path& run, bool printed, StandardErrors errors) {
  const Report report = read_report({run});
  nlohmann::json hashes;
  for (const auto& [name, text] : write_files(report, run / "report", errors))
    hashes[name] = xxh3_hex(text);
  // The journal as the report saw it: lines that are cut off its end later are missed.
  const std::vector<std::string> checks = check_journal(run).checks;
  write_sealed_json(run / kReportFile, kReportFile,
                    {{"files", hashes}, {"journal", checks.empty() ? "" : checks.back()}});
  if (printed) print(report, run / "report");
}

void report_runs(const std::vector<fs::path>& runs, const fs::path& folder, StandardErrors errors) {
  const Report report = read_report(runs);
  write_files(report, folder, errors);
  print(report, folder);
}

}  // namespace roundhouse
