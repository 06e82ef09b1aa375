#include "stages/report/tables.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include <fmt/format.h>

#include "stages/report/figure_text.h"

namespace roundhouse {
namespace {

constexpr int kPercentDecimals = 2, kPerplexityDecimals = 4;

Cell number_cell(double value, int decimals) {
  Cell cell{.text = fixed(value, decimals)};
  if (std::isfinite(value)) cell.value = value;
  return cell;
}

Cell scientific_cell(double value) {
  Cell cell{.text = scientific(value)};
  if (std::isfinite(value)) cell.value = value;
  return cell;
}

Cell percent_cell(const Figure& figure) {
  Cell cell = number_cell(100 * figure.value, kPercentDecimals);
  if (figure.standard_error > 0 && std::isfinite(figure.standard_error))
    cell.error = fixed(100 * figure.standard_error, kPercentDecimals);
  return cell;
}

// "3.01", "3.01 + 0.22" with a sparse part, and "3.01, outside the blocks 8.25" with a quantized head.
Cell bits_cell(const ReportRow& row) {
  if (!(row.bits_per_weight > 0)) return {};
  Cell cell = number_cell(row.bits_per_weight, 2);
  cell.text =
      fixed(std::round(100 * row.bits_per_weight) / 100, 2);  // 4.125 is 4.13, as 3.125 is 3.13
  if (row.sparse_bits_per_weight > 0) {
    cell.text += " + " + fixed(row.sparse_bits_per_weight, 2);
    cell.value = row.all_bits();
  }
  if (row.outside_bits_per_weight > 0)
    cell.text += ", outside the blocks " + fixed(row.outside_bits_per_weight, 2);
  return cell;
}

template <class Value>
const Value* find(const std::map<std::string, Value>& values, const std::string& name) {
  const auto found = values.find(name);
  return found == values.end() ? nullptr : &found->second;
}

void set_published(Cell& cell, const std::optional<PublishedFigure>& published, int decimals) {
  if (!published || !cell.value) return;
  cell.published = fixed(published->value, decimals);
  cell.difference = signed_difference(*cell.value - published->value, decimals);
  cell.remark = published->paper;
  if (!published->remark.empty()) cell.remark += ": " + published->remark;
}

// Of the cells of a column those that read like the best one of the quantized models, if there are two to choose from.
void mark_best(Table& table) {
  for (TableGroup& group : table.groups) {
    for (std::size_t c = 0; c < table.columns.size(); ++c) {
      if (table.columns[c].better == Better::kNone) continue;
      const double sign = table.columns[c].better == Better::kLower ? 1 : -1;
      const Cell* best = nullptr;
      int candidates = 0;
      for (const TableRow& row : group.rows) {
        const Cell& cell = row.cells[c];
        if (row.original || !cell.value) continue;
        ++candidates;
        if (!best || sign * *cell.value < sign * *best->value) best = &cell;
      }
      if (candidates < 2) continue;
      const std::string text = best->text;
      for (TableRow& row : group.rows) {
        if (!row.original && row.cells[c].value) row.cells[c].best = row.cells[c].text == text;
      }
    }
  }
}

// acc, or acc_norm where that is asked for and there is one; which it is goes into `metric`.
const Figure* figure_of(const TaskFigures& task, bool normalized, std::string& metric) {
  metric = normalized && task.normalized ? "acc_norm" : "acc";
  const std::optional<Figure>& figure = metric == "acc" ? task.accuracy : task.normalized;
  return figure ? &*figure : nullptr;
}

// Accuracies of tasks, their average, and perplexities, for the papers' forms.
class PaperColumns {
 public:
  PaperColumns(const Report& report, const PublishedTables& published, bool normalized,
               bool perplexities)
      : published_(published), normalized_(normalized), tasks_(accuracy_tasks(report)) {
    if (perplexities || tasks_.empty()) words_ = word_perplexity_tasks(report);
    if (tasks_.empty() || (perplexities && words_.empty())) texts_ = report.texts;
  }

  std::vector<Column> columns() const {
    std::vector<Column> columns;
    for (const std::string& task : tasks_) columns.push_back({task, Better::kHigher});
    if (tasks_.size() > 1) columns.push_back({"average", Better::kHigher});
    for (const std::string& task : words_)
      columns.push_back({task + " word perplexity", Better::kLower});
    for (const std::string& text : texts_)
      columns.push_back({text + " perplexity", Better::kLower});
    return columns;
  }

  std::vector<Cell> cells(const ReportRow& row) const {
    std::vector<Cell> cells;
    for (const std::string& task : tasks_) cells.push_back(task_cell(row, task));
    if (tasks_.size() > 1) cells.push_back(average_cell(row));
    for (const std::string& task : words_) {
      const TaskFigures* figures = find(row.tasks, task);
      Cell& cell = cells.emplace_back();
      if (!figures || !figures->word_perplexity) continue;
      cell = number_cell(*figures->word_perplexity, 2);
      set_published(cell, published_.find(row, figures->kind, ""), 2);
    }
    for (const std::string& text : texts_) {
      const double* perplexity = find(row.perplexity, text);
      cells.push_back(perplexity ? number_cell(*perplexity, kPerplexityDecimals) : Cell());
    }
    return cells;
  }

  // Is any of the columns' figures there?
  bool has_any(const ReportRow& row) const {
    return std::ranges::any_of(cells(row), [](const Cell& cell) { return !cell.text.empty(); });
  }

  bool empty() const { return tasks_.empty() && words_.empty() && texts_.empty(); }

 private:
  Cell task_cell(const ReportRow& row, const std::string& name) const {
    const TaskFigures* task = find(row.tasks, name);
    std::string metric;
    const Figure* figure = task ? figure_of(*task, normalized_, metric) : nullptr;
    if (!figure) return {};
    Cell cell = percent_cell(*figure);
    // A paper of acc_norm has acc where a task has only that.
    set_published(cell, published_.find(row, task->kind, normalized_ ? "acc_norm" : metric),
                  kPercentDecimals);
    return cell;
  }

  Cell average_cell(const ReportRow& row) const {
    double sum = 0;
    std::vector<std::string> kinds;
    for (const std::string& name : tasks_) {
      const TaskFigures* task = find(row.tasks, name);
      std::string metric;
      const Figure* figure = task ? figure_of(*task, normalized_, metric) : nullptr;
      if (!figure) return {};
      sum += figure->value;
      kinds.push_back(task->kind);
    }
    Cell cell = number_cell(100 * sum / static_cast<double>(tasks_.size()), kPercentDecimals);
    set_published(cell, published_.find_average(row, kinds, normalized_ ? "acc_norm" : "acc"),
                  kPercentDecimals);
    return cell;
  }

  const PublishedTables& published_;
  bool normalized_;
  std::vector<std::string> tasks_, words_, texts_;
};

// More bits first, then whole rows, then larger groups.
struct WidthOrder {
  bool operator()(const std::pair<double, int>& a, const std::pair<double, int>& b) const {
    if (a.first != b.first) return a.first > b.first;
    return (a.second <= 0 ? 1 << 30 : a.second) > (b.second <= 0 ? 1 << 30 : b.second);
  }
};

std::vector<std::string> compared_texts(const Report& report) {
  std::vector<std::string> texts;
  for (const std::string& text : report.texts) {
    const bool any = std::ranges::any_of(
        report.rows, [&](const ReportRow& row) { return row.divergence.contains(text); });
    if (any) texts.push_back(text);
  }
  return texts;
}

}  // namespace

Table overview_table(const Report& report) {
  const std::vector<std::string> tasks = accuracy_tasks(report);
  const std::vector<std::string> words = word_perplexity_tasks(report);
  const std::vector<std::string> compared = compared_texts(report);
  Table table{
      .kind = "overview",
      .title = "All recipes",
      .note =
          "Bits a weight of the quantized linears, with scales, zero points, tables and sparse "
          "parts; accuracies in "
          "percent; KL divergence from the original model in nats; seconds of quantization.",
      .first = "recipe"};
  table.columns.push_back({"bits/weight"});
  for (const std::string& text : report.texts)
    table.columns.push_back({"perplexity " + text, Better::kLower});
  for (const std::string& task : words)
    table.columns.push_back({"word perplexity " + task, Better::kLower});
  for (const std::string& text : compared) table.columns.push_back({"KL " + text, Better::kLower});
  for (const std::string& task : tasks) table.columns.push_back({task, Better::kHigher});
  if (tasks.size() > 1) table.columns.push_back({"average", Better::kHigher});
  for (const char* name : {"relative error", "seconds", "fallbacks"})
    table.columns.push_back({name});
  for (const auto& [model, rows] : rows_by_model(report)) {
    TableGroup& group = table.groups.emplace_back();
    group.model = model;
    for (const ReportRow* row : rows) {
      std::vector<Cell> cells{bits_cell(*row)};
      for (const std::string& text : report.texts) {
        const double* value = find(row->perplexity, text);
        cells.push_back(value ? number_cell(*value, kPerplexityDecimals) : Cell());
      }
      for (const std::string& task : words) {
        const TaskFigures* value = find(row->tasks, task);
        cells.push_back(value && value->word_perplexity ? number_cell(*value->word_perplexity, 2)
                                                        : Cell());
      }
      for (const std::string& text : compared) {
        const double* value = find(row->divergence, text);
        cells.push_back(value ? scientific_cell(*value) : Cell());
      }
      for (const std::string& task : tasks) {
        const TaskFigures* value = find(row->tasks, task);
        cells.push_back(value && value->accuracy ? percent_cell(*value->accuracy) : Cell());
      }
      const std::optional<double> average = average_accuracy(*row, tasks);
      if (tasks.size() > 1)
        cells.push_back(average ? number_cell(100 * *average, kPercentDecimals) : Cell());
      cells.push_back(row->relative_error != 0 ? scientific_cell(row->relative_error) : Cell());
      cells.push_back(row->seconds > 0 ? number_cell(row->seconds, 1) : Cell());
      cells.push_back(row->is_original() ? Cell() : number_cell(row->fallbacks, 0));
      group.rows.push_back({row->name, std::move(cells), row->is_original()});
    }
  }
  return table;
}

std::vector<Table> width_tables(const Report& report, const PublishedTables& published) {
  const PaperColumns columns(report, published, false, false);
  std::map<std::pair<double, int>, Table, WidthOrder> tables;
  if (columns.empty()) return {};
  for (const auto& [model, rows] : rows_by_model(report)) {
    for (const ReportRow* row : rows) {
      if (!(row->bits > 0) || row->bits != std::floor(row->bits) || !columns.has_any(*row))
        continue;
      Table& table = tables[{row->bits, row->group_size}];
      if (table.columns.empty()) {
        table = {.kind = "widths",
                 .title = width_of(*row),
                 .note = accuracy_tasks(report).empty()
                             ? "Perplexities; the best of each model in bold."
                             : "Accuracies in percent (acc); the best of each model in bold.",
                 .first = "method",
                 .columns = columns.columns()};
      }
      if (table.groups.empty() || table.groups.back().model != model) {
        table.groups.push_back({.model = model, .rows = {}});
        for (const ReportRow* original : rows) {
          if (original->is_original())
            table.groups.back().rows.push_back({original->name, columns.cells(*original), true});
        }
      }
      table.groups.back().rows.push_back({row->variant, columns.cells(*row), false});
    }
  }
  std::vector<Table> made;
  for (auto& [width, table] : tables) {
    mark_best(table);
    made.push_back(std::move(table));
  }
  return made;
}

std::vector<Table> average_tables(const Report& report, const PublishedTables& published) {
  const PaperColumns columns(report, published, true, true);
  std::vector<Table> made;
  if (columns.empty()) return made;
  for (const auto& [model, all] : rows_by_model(report)) {
    std::vector<const ReportRow*> rows;
    std::vector<std::string> variants;
    for (const ReportRow* row : all) {
      if (!row->is_original() && (!(row->bits > 0) || !columns.has_any(*row))) continue;
      rows.push_back(row);
      if (std::ranges::find(variants, row->variant) == variants.end())
        variants.push_back(row->variant);
    }
    if (rows.empty() || rows.back()->is_original()) continue;
    std::ranges::stable_sort(rows, [&](const ReportRow* a, const ReportRow* b) {
      const auto at_a = std::ranges::find(variants, a->variant);
      const auto at_b = std::ranges::find(variants, b->variant);
      if (at_a != at_b) return at_a < at_b;
      return WidthOrder()({a->bits, a->group_size}, {b->bits, b->group_size});
    });
    Table table{.kind = "averages",
                .title = model,
                .note = accuracy_tasks(report).empty()
                            ? "By method and bits: perplexities."
                            : "By method and bits: accuracies in percent (acc_norm of tasks that "
                              "have it, else acc) and perplexity.",
                .first = "method",
                .columns = {{"bits"}}};
    for (const Column& column : columns.columns())
      table.columns.push_back({column.name, Better::kNone});
    TableGroup& group = table.groups.emplace_back();
    group.model = model;
    for (const ReportRow* row : rows) {
      Cell bits{.text = "16"};
      bits.value = 16;
      if (!row->is_original()) {
        bits.text = width_of(*row).substr(1);
        if (const std::size_t g = bits.text.find('G'); g != std::string::npos)
          bits.text.insert(g, " ");
        bits.value = row->bits;
      }
      std::vector<Cell> cells{std::move(bits)};
      for (Cell& cell : columns.cells(*row)) cells.push_back(std::move(cell));
      group.rows.push_back(
          {row->is_original() ? row->name : row->variant, std::move(cells), row->is_original()});
    }
    made.push_back(std::move(table));
  }
  return made;
}

Table figures_table(const Report& report, const PublishedTables& published) {
  Table table{
      .kind = "figures",
      .title = "Tasks in full",
      .note = "acc and acc_norm of lm-evaluation-harness in percent, each with its standard error.",
      .first = "recipe",
      .columns = {{"task"}, {"acc"}, {"acc_norm"}, {"word perplexity"}, {"documents"}}};
  for (const auto& [model, rows] : rows_by_model(report)) {
    TableGroup group{.model = model, .rows = {}};
    for (const ReportRow* row : rows) {
      for (const std::string& name : report.tasks) {
        const TaskFigures* task = find(row->tasks, name);
        if (!task) continue;
        std::vector<Cell> cells(5);
        cells[0].text = name;
        if (task->accuracy) {
          cells[1] = percent_cell(*task->accuracy);
          set_published(cells[1], published.find(*row, task->kind, "acc"), kPercentDecimals);
        }
        if (task->normalized) {
          cells[2] = percent_cell(*task->normalized);
          set_published(cells[2], published.find(*row, task->kind, "acc_norm"), kPercentDecimals);
        }
        if (task->word_perplexity) {
          cells[3] = number_cell(*task->word_perplexity, 2);
          set_published(cells[3], published.find(*row, task->kind, ""), 2);
        }
        cells[4] = number_cell(static_cast<double>(task->documents), 0);
        group.rows.push_back({row->name, std::move(cells), row->is_original()});
      }
    }
    if (!group.rows.empty()) table.groups.push_back(std::move(group));
  }
  return table;
}

}  // namespace roundhouse
