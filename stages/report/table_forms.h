// Tables as text: for a terminal, Markdown, CSV, LaTeX (booktabs). The page has its own template.
#pragma once

#include <string>
#include <vector>

#include "stages/report/tables.h"

namespace roundhouse {

enum class StandardErrors { kHidden, kShown };

// Columns by spaces. A model's name stands above its rows.
std::string to_text(const Table& table);
std::string to_markdown(const Table& table, StandardErrors errors);
// A tabular; the best in bold, a rule between models.
std::string to_latex(const Table& table, StandardErrors errors);
// Tables with the same columns as one: title, model, name, then for each column its text, and where any cell has them, its standard error and
// what a paper has there, as columns of their own.
std::string to_csv(const std::vector<Table>& tables);

}  // namespace roundhouse
