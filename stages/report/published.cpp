#include "stages/report/published.h"

#include <algorithm>
#include <cctype>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "stages/report/template.h"

namespace roundhouse {
namespace {

constexpr const char* kAverage = "average";
constexpr const char* kWordPerplexity = "wikitext";

}  // namespace

std::string plain_model_name(const std::string& model) {
  std::string name;
  for (const char c : model.substr(model.find_last_of('/') + 1)) {
    if (std::isalnum(static_cast<unsigned char>(c)))
      name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (name.starts_with("meta")) name.erase(0, 4);
  for (const std::string end : {"hf", "v01"}) {
    if (name.ends_with(end)) name.erase(name.size() - end.size());
  }
  return name;
}

PublishedTables::PublishedTables() {
  for (const char* file : {"signround.json", "llm-mq.json"}) {
    try {
      const nlohmann::json json = nlohmann::json::parse(embedded_file(file));
      Paper& paper = papers_.emplace_back();
      paper.name = json.at("name").get<std::string>();
      paper.source = json.at("source").get<std::string>();
      paper.metric = json.at("metric").get<std::string>();
      paper.columns = json.at("columns").get<std::vector<std::string>>();
      for (const nlohmann::json& row : json.at("rows")) {
        const std::string method = row.at("method").get<std::string>();
        paper.rows.push_back({.model = plain_model_name(row.at("model").get<std::string>()),
                              .method = method == "original" ? "" : method,
                              .bits = row.value("bits", 0.0),
                              .group_size = row.value("group_size", 0),
                              .figures = row.at("figures").get<std::vector<double>>(),
                              .remark = row.value("remark", "")});
        require(paper.rows.back().figures.size() == paper.columns.size(),
                "a row has as many figures as there are columns");
      }
    } catch (const nlohmann::json::exception& error) {
      throw Error(std::string(file) + ": " + error.what());
    }
  }
}

bool PublishedTables::Row::is_of(const ReportRow& row) const {
  if (row.overridden || method != row.method || model != plain_model_name(row.model)) return false;
  return row.is_original() || (bits == row.bits && group_size == row.group_size && !row.symmetric);
}

std::optional<PublishedFigure> PublishedTables::find(const ReportRow& row,
                                                     const std::string& column,
                                                     const std::string& metric) const {
  for (const Paper& paper : papers_) {
    if (column != kWordPerplexity && paper.metric != metric) continue;
    const auto at = std::ranges::find(paper.columns, column);
    if (at == paper.columns.end()) continue;
    for (const Row& each : paper.rows) {
      if (!each.is_of(row)) continue;
      return PublishedFigure{each.figures[at - paper.columns.begin()], paper.name, each.remark};
    }
  }
  return std::nullopt;
}

std::optional<PublishedFigure> PublishedTables::find_average(const ReportRow& row,
                                                             std::vector<std::string> kinds,
                                                             const std::string& metric) const {
  std::ranges::sort(kinds);
  for (const Paper& paper : papers_) {
    std::vector<std::string> theirs;
    std::ranges::copy_if(paper.columns, std::back_inserter(theirs), [](const std::string& column) {
      return column != kAverage && column != kWordPerplexity;
    });
    std::ranges::sort(theirs);
    if (paper.metric == metric && theirs == kinds) return find(row, kAverage, metric);
  }
  return std::nullopt;
}

std::vector<std::string> PublishedTables::sources(const Report& report) const {
  std::vector<std::string> sources;
  for (const Paper& paper : papers_) {
    const bool any = std::ranges::any_of(paper.rows, [&](const Row& each) {
      return std::ranges::any_of(report.rows,
                                 [&](const ReportRow& row) { return each.is_of(row); });
    });
    if (any) sources.push_back(paper.source);
  }
  return sources;
}

}  // namespace roundhouse
