// The report of a run: tables and a page of what there is by now.
#pragma once

#include <filesystem>

namespace roundhouse {

// Writes RUN/report; prints the table where it is asked to. On one rank.
void report_run(const std::filesystem::path& run, bool print);

}  // namespace roundhouse
