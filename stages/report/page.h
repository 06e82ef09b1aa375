// The report as files: one HTML page that loads nothing, and the same tables as Markdown, CSV and LaTeX.
#pragma once

#include <map>
#include <string>

#include "stages/report/report.h"
#include "stages/report/table_forms.h"

namespace roundhouse {

std::string to_html(const Report& report);

// All of them by name: index.html, results.md, results.tex, results.csv (every recipe), and as far as there is something to say
// widths.csv, averages.csv, figures.csv.
std::map<std::string, std::string> report_files(const Report& report, StandardErrors errors);

// One of the report's tables in one of the forms, for a terminal or a pipe. `kind`: as Table::kind; `form`: "text", "markdown", "csv", "latex".
std::string print_tables(const Report& report, const std::string& kind, const std::string& form,
                         StandardErrors errors);

// What is printed at the end of a run: every recipe, and what is missing.
std::string to_text(const Report& report);

}  // namespace roundhouse
