// One run's part of a report, from its folder: config, results, journal.
#pragma once

#include <filesystem>
#include <vector>

#include "stages/report/report.h"

namespace roundhouse {

struct RunFigures {
  ReportRun run;
  std::vector<ReportRow> rows;            // the original first, if it was measured
  std::vector<std::string> texts, tasks;  // in the config's order, then others that were measured
  std::string model;                      // hash: which runs are of the same
};

// Throws InputError if there is no config in the folder.
RunFigures read_run_figures(const std::filesystem::path& run);

}  // namespace roundhouse
