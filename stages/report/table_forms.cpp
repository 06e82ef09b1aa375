#include "stages/report/table_forms.h"

#include <algorithm>
#include <functional>

#include "stages/report/figure_text.h"

namespace roundhouse {
namespace {

// Code points, near enough to columns of a terminal.
std::size_t width_of_text(const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

// Model, name and the columns' names.
std::vector<std::string> header_of(const Table& table) {
  std::vector<std::string> header{"model", table.first};
  for (const Column& column : table.columns) header.push_back(column.name);
  return header;
}

bool any_cell(const std::vector<Table>& tables, std::size_t column,
              const std::function<bool(const Cell&)>& has) {
  for (const Table& table : tables) {
    for (const TableGroup& group : table.groups) {
      for (const TableRow& row : group.rows) {
        if (has(row.cells[column])) return true;
      }
    }
  }
  return false;
}

}  // namespace

std::string to_text(const Table& table) {
  std::vector<std::vector<std::string>> lines{{table.first}};
  for (const Column& column : table.columns) lines[0].push_back(column.name);
  for (const TableGroup& group : table.groups) {
    if (table.groups.size() > 1) lines.push_back({group.model});
    for (const TableRow& row : group.rows) {
      std::vector<std::string>& line = lines.emplace_back();
      line.push_back(row.name);
      for (const Cell& cell : row.cells) line.push_back(cell.text);
    }
  }
  std::vector<std::size_t> width(table.columns.size() + 1);
  for (const auto& line : lines) {
    if (line.size() == 1) continue;
    for (std::size_t i = 0; i < line.size(); ++i)
      width[i] = std::max(width[i], width_of_text(line[i]));
  }
  std::string text;
  for (const auto& line : lines) {
    for (std::size_t i = 0; i < line.size(); ++i) {
      const std::size_t own = width_of_text(line[i]);
      const std::string gap(line.size() == 1 || own > width[i] ? 0 : width[i] - own, ' ');
      text += i == 0 ? "  " + line[i] + gap : "   " + gap + line[i];
    }
    text += "\n";
  }
  return text;
}

std::string to_markdown(const Table& table, StandardErrors errors) {
  std::string text = "|";
  for (const std::string& name : header_of(table)) text += " " + escape_markdown(name) + " |";
  text += "\n|---|---|";
  for (std::size_t i = 0; i < table.columns.size(); ++i) text += "---:|";
  text += "\n";
  for (const TableGroup& group : table.groups) {
    for (const TableRow& row : group.rows) {
      text += "| " + escape_markdown(group.model) + " | " + escape_markdown(row.name) + " |";
      for (const Cell& cell : row.cells) {
        std::string figure = escape_markdown(cell.text);
        if (cell.best) figure = "**" + figure + "**";
        if (errors == StandardErrors::kShown && !cell.error.empty()) figure += " ± " + cell.error;
        if (!cell.published.empty()) figure += " (" + cell.published + ", " + cell.difference + ")";
        text += " " + figure + " |";
      }
      text += "\n";
    }
  }
  return text;
}

std::string to_latex(const Table& table, StandardErrors errors) {
  std::string text = "% " + escape_latex(table.title) + ": " + escape_latex(table.note) +
                     "\n\\begin{tabular}{ll" + std::string(table.columns.size(), 'r') +
                     "}\n\\toprule\n";
  std::string separator;
  for (const std::string& name : header_of(table)) {
    text += separator + escape_latex(name);
    separator = " & ";
  }
  text += " \\\\\n";
  for (const TableGroup& group : table.groups) {
    text += "\\midrule\n";
    std::string model = escape_latex(group.model);
    for (const TableRow& row : group.rows) {
      text += model + " & " + escape_latex(row.name);
      model.clear();
      for (const Cell& cell : row.cells) {
        std::string figure = escape_latex(cell.text);
        if (cell.best) figure = "\\textbf{" + figure + "}";
        if (errors == StandardErrors::kShown && !cell.error.empty())
          figure += " $\\pm$ " + cell.error;
        if (!cell.published.empty())
          figure += " {\\scriptsize (" + cell.published + ", $" + cell.difference + "$)}";
        text += " & " + figure;
      }
      text += " \\\\\n";
    }
  }
  return text + "\\bottomrule\n\\end{tabular}\n";
}

std::string to_csv(const std::vector<Table>& tables) {
  if (tables.empty()) return "";
  const Table& first = tables.front();
  std::vector<std::pair<bool, bool>> more;  // of each column: standard errors, published figures
  std::string text = "table,model," + escape_csv(first.first);
  for (std::size_t c = 0; c < first.columns.size(); ++c) {
    const std::string name = first.columns[c].name;
    more.emplace_back(
        any_cell(tables, c, [](const Cell& cell) { return !cell.error.empty(); }),
        any_cell(tables, c, [](const Cell& cell) { return !cell.published.empty(); }));
    text += "," + escape_csv(name);
    if (more.back().first) text += "," + escape_csv(name + " stderr");
    if (more.back().second) text += "," + escape_csv(name + " published");
  }
  text += "\r\n";
  for (const Table& table : tables) {
    for (const TableGroup& group : table.groups) {
      for (const TableRow& row : group.rows) {
        text +=
            escape_csv(table.title) + "," + escape_csv(group.model) + "," + escape_csv(row.name);
        for (std::size_t c = 0; c < row.cells.size(); ++c) {
          text += "," + escape_csv(row.cells[c].text);
          if (more[c].first) text += "," + escape_csv(row.cells[c].error);
          if (more[c].second) text += "," + escape_csv(row.cells[c].published);
        }
        text += "\r\n";
      }
    }
  }
  return text;
}

}  // namespace roundhouse
