#include "stages/report/report.h"

#include <algorithm>

#include <fmt/format.h>

namespace roundhouse {
namespace {

std::vector<std::string> tasks_with(const Report& report, bool (*has)(const TaskFigures&)) {
  std::vector<std::string> tasks;
  for (const std::string& task : report.tasks) {
    const bool any = std::ranges::any_of(report.rows, [&](const ReportRow& row) {
      const auto found = row.tasks.find(task);
      return found != row.tasks.end() && has(found->second);
    });
    if (any) tasks.push_back(task);
  }
  return tasks;
}

}  // namespace

std::string width_of(const ReportRow& row) {
  if (!(row.bits > 0)) return "";
  return fmt::format("W{:g}{}", row.bits,
                     row.group_size > 0 ? fmt::format("G{}", row.group_size) : "");
}

std::optional<double> average_accuracy(const ReportRow& row,
                                       const std::vector<std::string>& tasks) {
  if (tasks.empty()) return std::nullopt;
  double sum = 0;
  for (const std::string& task : tasks) {
    const auto found = row.tasks.find(task);
    if (found == row.tasks.end() || !found->second.accuracy) return std::nullopt;
    sum += found->second.accuracy->value;
  }
  return sum / static_cast<double>(tasks.size());
}

std::vector<std::string> accuracy_tasks(const Report& report) {
  return tasks_with(report, [](const TaskFigures& task) { return task.accuracy.has_value(); });
}

std::vector<std::string> word_perplexity_tasks(const Report& report) {
  return tasks_with(report,
                    [](const TaskFigures& task) { return task.word_perplexity.has_value(); });
}

std::vector<std::pair<std::string, std::vector<const ReportRow*>>> rows_by_model(
    const Report& report) {
  std::vector<std::pair<std::string, std::vector<const ReportRow*>>> models;
  for (const ReportRow& row : report.rows) {
    auto found = std::ranges::find(models, row.model, [](const auto& each) { return each.first; });
    if (found == models.end()) found = models.insert(models.end(), {row.model, {}});
    found->second.push_back(&row);
  }
  return models;
}

}  // namespace roundhouse
