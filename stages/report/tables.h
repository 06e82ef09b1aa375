// The tables of a report, as cells: what they hold, not how they look (table_forms.h).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "stages/report/published.h"
#include "stages/report/report.h"

namespace roundhouse {

struct Cell {
  std::string text = {};
  std::optional<double> value = {};  // to sort by
  std::string error = {};            // standard error, as text; mostly empty
  std::string published = {};        // what a paper has there: "57.48"
  std::string difference = {};       // of this figure from the paper's: "+0.31"
  std::string remark = {};           // of the paper's
  bool best = false;                 // of the quantized models of its group
};

enum class Better { kNone, kLower, kHigher };

struct Column {
  std::string name;
  Better better = Better::kNone;
};

struct TableRow {
  std::string name;  // recipe or method
  std::vector<Cell> cells;
  bool original = false;
};

struct TableGroup {
  std::string model;
  std::vector<TableRow> rows;
};

struct Table {
  std::string kind;   // "overview", "widths", "averages", "figures"
  std::string title;  // "W4G128"
  std::string note;   // one sentence on what it shows
  std::string first;  // what the rows' names are: "recipe", "method"
  std::vector<Column> columns = {};
  std::vector<TableGroup> groups = {};
};

// Every recipe with every figure.
Table overview_table(const Report& report);
// As SignRound's paper has them: for each width one table of models x methods by tasks, and their average; where no task was measured,
// by perplexities.
std::vector<Table> width_tables(const Report& report, const PublishedTables& published);
// As LLM-MQ's paper has them: for each model one table of methods x bits by tasks (acc_norm, where a task has it), their average and the
// word perplexity; where no task was measured, by perplexities.
std::vector<Table> average_tables(const Report& report, const PublishedTables& published);
// One row for each model, recipe and task: acc, acc_norm, standard errors, documents.
Table figures_table(const Report& report, const PublishedTables& published);

}  // namespace roundhouse
