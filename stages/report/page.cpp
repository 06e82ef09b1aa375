#include "stages/report/page.h"

#include <algorithm>
#include <string_view>

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/report/busy.h"
#include "stages/report/figure_text.h"
#include "stages/report/heat_map.h"
#include "stages/report/plot.h"
#include "stages/report/template.h"

namespace roundhouse {
namespace {

using Json = nlohmann::json;

Json to_json(const Cell& cell) {
  return {{"text", cell.text},
          {"value", cell.value ? fmt::format("{:.9g}", *cell.value) : ""},
          {"error", cell.error},
          {"published", cell.published},
          {"difference", cell.difference},
          {"remark", cell.remark},
          {"best", cell.best}};
}

Json to_json(const Table& table) {
  Json columns = Json::array(), groups = Json::array();
  for (const Column& column : table.columns) {
    columns.push_back({{"name", column.name},
                       {"better", column.better == Better::kLower    ? "lower is better"
                                  : column.better == Better::kHigher ? "higher is better"
                                                                     : ""}});
  }
  for (const TableGroup& group : table.groups) {
    Json rows = Json::array();
    for (const TableRow& row : group.rows) {
      Json cells = Json::array();
      for (const Cell& cell : row.cells) cells.push_back(to_json(cell));
      rows.push_back({{"name", row.name}, {"original", row.original}, {"cells", cells}});
    }
    groups.push_back({{"model", group.model}, {"rows", rows}});
  }
  return {{"kind", table.kind},
          {"title", table.title},
          {"note", table.note},
          {"first", table.first},
          {"span", std::to_string(table.columns.size() + 1)},
          {"columns", columns},
          {"groups", groups}};
}

Json to_json(const std::vector<Table>& tables) {
  Json list = Json::array();
  for (const Table& table : tables) list.push_back(to_json(table));
  return list;
}

// The methods of a model, each with its color and mark.
Json legend_of(const std::vector<const ReportRow*>& rows, const SeriesNumbers& series) {
  Json legend = Json::array();
  for (std::size_t number = 0; number < series.size(); ++number) {
    const bool own = std::ranges::any_of(
        rows, [&](const ReportRow* row) { return row->variant == series[number]; });
    if (own)
      legend.push_back(
          {{"name", series[number]}, {"color", std::to_string(number % kSeriesColors)}});
  }
  return legend;
}

Json pictures_of(const Report& report) {
  const SeriesNumbers series = series_of(report);
  Json models = Json::array();
  for (const auto& [model, rows] : rows_by_model(report)) {
    Json plots = Json::array();
    for (const PlotFigure& figure : plot_figures(rows, report))
      plots.push_back(draw(figure, series));
    if (!plots.empty())
      models.push_back({{"model", model}, {"plots", plots}, {"legend", legend_of(rows, series)}});
  }
  return models;
}

Json heat_maps_of(const Report& report) {
  const HeatLevels levels = heat_levels(report.rows);
  Json models = Json::array(), legend = Json::array();
  for (const auto& [model, rows] : rows_by_model(report)) {
    Json maps = Json::array();
    int blocks = 0;
    std::string last_unit;
    for (const ReportRow* row : rows) {
      if (row->errors.empty() || row->errors.rbegin()->first < blocks) continue;
      blocks = row->errors.rbegin()->first + 1;
      last_unit = unit_name(blocks - 1, row->blocks, row->include);
    }
    for (const ReportRow* row : rows) {
      Json map = draw_heat_map(*row, levels, blocks);
      if (!map.is_null()) maps.push_back(std::move(map));
    }
    if (!maps.empty())
      models.push_back({{"model", model}, {"last_unit", last_unit}, {"maps", maps}});
  }
  if (models.empty()) return nullptr;
  for (int level = 0; level < HeatLevels::kLevels; ++level) {
    legend.push_back({{"level", std::to_string(level)},
                      {"text", fmt::format("from {}", scientific(levels.bound(level)))}});
  }
  return {{"models", models},
          {"legend", legend},
          {"least", scientific(levels.least)},
          {"most", scientific(levels.most)}};
}

// The phases of all recipes by their share of the whole, the largest first, so that colors go to those that matter.
std::vector<std::string> phases_of(const Report& report) {
  std::map<std::string, double> sums;
  for (const ReportRow& row : report.rows) {
    for (const auto& [phase, seconds] : row.phases) sums[phase] += seconds;
  }
  std::vector<std::string> phases;
  for (const auto& [phase, seconds] : sums) phases.push_back(phase);
  std::ranges::stable_sort(
      phases, [&](const std::string& a, const std::string& b) { return sums[a] > sums[b]; });
  return phases;
}

Json phase_bars_of(const Report& report) {
  const std::vector<std::string> phases = phases_of(report);
  double longest = 0;
  for (const ReportRow& row : report.rows) {
    double sum = 0;
    for (const auto& [phase, seconds] : row.phases) sum += seconds;
    longest = std::max(longest, sum);
  }
  if (!(longest > 0)) return nullptr;
  const auto color = [&](std::size_t phase) {
    return phase < kSeriesColors ? std::to_string(phase) : std::string("rest");  // gray
  };
  Json bars = Json::array(), legend = Json::array();
  for (std::size_t p = 0; p < phases.size(); ++p)
    legend.push_back({{"phase", phases[p]}, {"color", color(p)}});
  for (const auto& [model, rows] : rows_by_model(report)) {
    for (const ReportRow* row : rows) {
      if (row->phases.empty()) continue;
      Json parts = Json::array();
      double at = 0;
      std::string words;
      for (std::size_t p = 0; p < phases.size(); ++p) {
        const auto found = row->phases.find(phases[p]);
        if (found == row->phases.end() || !(found->second > 0)) continue;
        const double width = 100 * found->second / longest;
        parts.push_back({{"color", color(p)},
                         {"x", fmt::format("{:.2f}", at)},
                         {"width", fmt::format("{:.2f}", width)},
                         {"tip", phases[p] + ": " + seconds_text(found->second)}});
        at += width;
        if (found->second < 0.005 * row->seconds) continue;
        words += (words.empty() ? "" : ", ") + phases[p] + " " + seconds_text(found->second);
      }
      bars.push_back({{"model", model},
                      {"name", row->name},
                      {"seconds", seconds_text(row->seconds)},
                      {"parts", parts},
                      {"words", words}});
    }
  }
  return {{"bars", bars}, {"legend", legend}};
}

Json to_json(const ReportRun& run) {
  Json provenance = Json::array();
  for (const auto& [label, value] : run.provenance)
    provenance.push_back({{"label", label}, {"value", value}});
  return {{"name", run.name},       {"model", run.model},         {"missing", run.missing},
          {"remarks", run.remarks}, {"fallbacks", run.fallbacks}, {"provenance", provenance},
          {"config", run.config}};
}

std::vector<Table> tables_of(const Report& report, const std::string& kind,
                             const PublishedTables& published) {
  if (kind == "overview") return {overview_table(report)};
  if (kind == "widths") return width_tables(report, published);
  if (kind == "averages") return average_tables(report, published);
  require(kind == "figures", "a table that is known");
  Table figures = figures_table(report, published);
  if (figures.groups.empty()) return {};
  return {std::move(figures)};
}

constexpr const char* kKinds[] = {"overview", "widths", "averages", "figures"};

}  // namespace

std::string to_html(const Report& report) {
  const PublishedTables published;
  Json runs = Json::array(), busy = Json::array();
  bool missing = false, fallbacks = false, remarks = false;
  for (const ReportRun& run : report.runs) {
    runs.push_back(to_json(run));
    missing |= !run.missing.empty();
    fallbacks |= !run.fallbacks.empty();
    remarks |= !run.remarks.empty();
    Json drawing = draw_busy(run);
    if (!drawing.is_null()) busy.push_back(std::move(drawing));
  }
  Json values = {{"title", report.title},
                 {"made", report.made},
                 {"runs", runs},
                 {"several_runs", report.runs.size() > 1},
                 {"any_missing", missing},
                 {"any_fallbacks", fallbacks},
                 {"any_remarks", remarks},
                 {"pictures", pictures_of(report)},
                 {"sources", published.sources(report)},
                 {"heat", heat_maps_of(report)},
                 {"phases", phase_bars_of(report)},
                 {"busy", busy},
                 {"any_busy", !busy.empty()}};
  for (const char* kind : kKinds) values[kind] = to_json(tables_of(report, kind, published));
  values["has_sources"] = !values["sources"].empty();
  values["has_figures"] = !values["figures"].empty();
  return render_template("page.html", values,
                         [](const std::string& text) { return escape_html(text); });
}

std::map<std::string, std::string> report_files(const Report& report, StandardErrors errors) {
  const PublishedTables published;
  std::map<std::string, std::string> files = {{"index.html", to_html(report)}};
  std::string markdown = "# " + escape_markdown(report.title) + "\n";
  std::string latex = "% " + escape_latex(report.title) + "; needs booktabs\n";
  for (const char* kind : kKinds) {
    const std::vector<Table> tables = tables_of(report, kind, published);
    if (tables.empty()) continue;
    for (const Table& table : tables) {
      markdown += "\n## " + escape_markdown(table.title) + "\n\n" + to_markdown(table, errors) +
                  "\n" + escape_markdown(table.note) + "\n";
      latex += "\n" + to_latex(table, errors);
    }
    const std::string name = std::string_view(kind) == "overview" ? "results" : kind;
    files[name + ".csv"] = to_csv(tables);
  }
  for (const ReportRun& run : report.runs) {
    for (const auto* lines : {&run.missing, &run.remarks, &run.fallbacks}) {
      for (const std::string& line : *lines)
        markdown += "\n" + escape_markdown(run.name + ": " + line) + "\n";
    }
  }
  for (const std::string& source : published.sources(report)) {
    markdown += "\nIn parentheses: what a paper has, and the difference from it: " +
                escape_markdown(source) + "\n";
  }
  files["results.md"] = markdown;
  files["results.tex"] = latex;
  return files;
}

std::string print_tables(const Report& report, const std::string& kind, const std::string& form,
                         StandardErrors errors) {
  const PublishedTables published;
  const std::vector<Table> tables = tables_of(report, kind, published);
  if (form == "csv") return to_csv(tables);
  std::string text;
  for (const Table& table : tables) {
    if (!text.empty()) text += "\n";
    if (form == "latex") {
      text += to_latex(table, errors);
    } else if (form == "markdown") {
      text += "## " + escape_markdown(table.title) + "\n\n" + to_markdown(table, errors) + "\n" +
              escape_markdown(table.note) + "\n";
    } else {
      text += table.title + "\n" + to_text(table);
    }
  }
  return text;
}

std::string to_text(const Report& report) {
  std::string text = report.title + "\n" + to_text(overview_table(report));
  for (const ReportRun& run : report.runs) {
    for (const auto* lines : {&run.missing, &run.remarks, &run.fallbacks}) {
      for (const std::string& line : *lines) text += "  " + line + "\n";
    }
  }
  return text;
}

}  // namespace roundhouse
