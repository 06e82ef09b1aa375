// The report of runs: read from their folders, whatever state they are in, and written as a page and tables.
#pragma once

#include <filesystem>
#include <vector>

#include "stages/report/report.h"
#include "stages/report/table_forms.h"

namespace roundhouse {

// Reads only. Throws InputError for a folder that is no run.
Report read_report(const std::vector<std::filesystem::path>& runs);

// One run's, into RUN/report, with the hashes of its files in RUN/report.json. `print`: the table of all recipes, and where the page is.
void report_run(const std::filesystem::path& run, bool print,
                StandardErrors errors = StandardErrors::kHidden);

// Several runs' on one page.
void report_runs(const std::vector<std::filesystem::path>& runs,
                 const std::filesystem::path& folder, StandardErrors errors);

}  // namespace roundhouse
