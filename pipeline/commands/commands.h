// The commands of the program; each returns an exit code (base/exit_code.h): done, or stopped with work left. Errors are exceptions.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "comm/launcher.h"
#include "pipeline/config/config.h"

namespace roundhouse {

// retry_failed: recipes that failed at an earlier start are tried again.
int run_command(LaunchSession& session, const RunConfig& config, bool retry_failed = false);

struct PlanArguments {
  std::filesystem::path config;
  std::vector<std::string> overrides;
  int ranks = 0;                      // 0: as many as the config's mesh has, or one
  std::string device;                 // of known_devices(); empty: h200, or what the config says
  std::filesystem::path rates;        // a file in place of a device
  std::filesystem::path write_rates;  // where to write those that were used
  std::string like;                   // a published shape in place of the model's folder
  bool measure = false, scaling = false, json = false;
};
int plan_command(const PlanArguments& arguments);

struct ExportArguments {
  std::filesystem::path run;
  std::vector<std::string> recipes;  // empty: all that are complete
  std::vector<std::string> formats;  // empty: the config's, or compressed-tensors
  std::vector<std::string> engines;  // that must load it; empty: the config's
  std::filesystem::path output;      // empty: RUN/export
  bool check = false;                // read them back; one that is there is not written again
};
int export_command(LaunchSession& session, const ExportArguments& arguments);

struct EvaluateArguments {
  std::filesystem::path target;      // a run, or a Hugging Face model directory
  std::vector<std::string> recipes;  // of a run; empty: all that are complete
  Evaluations evaluations;           // empty: the run's config
};
int evaluate_command(LaunchSession& session, const EvaluateArguments& arguments);

int status_command(const std::filesystem::path& run, bool follow);
// A run (every record and every export) or an exported checkpoint. 0: all hashes are right; 1: not.
int verify_command(const std::filesystem::path& target);

struct ReportArguments {
  std::vector<std::filesystem::path> runs;
  std::filesystem::path output;  // empty: RUN/report of a single run, ./report of several
  std::string table;             // only printed, instead of files; empty: files are written
  std::string form = "text";     // of the table: text, markdown, csv or latex
  bool errors = false;           // standard errors in Markdown and LaTeX
};
int report_command(const ReportArguments& arguments);

struct TimelineArguments {
  std::filesystem::path run;
  std::filesystem::path output;  // empty: RUN/timeline.json
};
int timeline_command(const TimelineArguments& arguments);

struct SynthArguments {
  std::string like;  // a published shape (model/synthetic.h)
  std::filesystem::path output;
  int blocks = 0;  // 0: as many as the published model has
  std::uint64_t seed = 1;
  std::filesystem::path tokenizer;  // a model directory whose tokenizer is copied
};
int synth_command(const SynthArguments& arguments);

// Parses the command line and runs a command; prints errors; the exit code of the program.
int main_command(int argc, char** argv);

}  // namespace roundhouse
