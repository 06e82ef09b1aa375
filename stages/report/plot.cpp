#include "stages/report/plot.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "stages/report/figure_text.h"

namespace roundhouse {
namespace {

// Of 480 x 320.
constexpr double kLeft = 54, kRight = 468, kTop = 16, kBottom = 276;

std::string place(double value) { return fmt::format("{:.1f}", value); }

// A quantized row with bits and a figure that can be drawn.
void add_point(std::vector<PlotPoint>& points, const ReportRow& row, double value,
               bool logarithmic) {
  if (row.is_original() || !(row.all_bits() > 0) || !(row.all_bits() < 64)) return;
  if (!std::isfinite(value) || (logarithmic && !(value > 0))) return;
  points.push_back({row.all_bits(), value, row.name, row.variant});
}

void keep(std::vector<PlotFigure>& figures, PlotFigure figure) {
  if (figure.points.size() < 2) return;
  std::ranges::stable_sort(figure.points, {}, &PlotPoint::bits);
  figures.push_back(std::move(figure));
}

}  // namespace

SeriesNumbers series_of(const Report& report) {
  SeriesNumbers series;
  for (const ReportRow& row : report.rows) {
    if (!row.is_original() && std::ranges::find(series, row.variant) == series.end())
      series.push_back(row.variant);
  }
  return series;
}

std::vector<PlotFigure> plot_figures(const std::vector<const ReportRow*>& rows,
                                     const Report& report) {
  std::vector<PlotFigure> figures;
  for (const std::string& text : report.texts) {
    PlotFigure figure{.title = "Perplexity on " + text, .points = {}};
    for (const ReportRow* row : rows) {
      const auto found = row->perplexity.find(text);
      if (found == row->perplexity.end()) continue;
      add_point(figure.points, *row, found->second, true);
      if (row->is_original() && std::isfinite(found->second)) figure.original = found->second;
    }
    keep(figures, std::move(figure));
  }
  const std::vector<std::string> tasks = accuracy_tasks(report);
  PlotFigure accuracy{.title = tasks.size() == 1 ? "Accuracy on " + tasks[0] + " (%)"
                                                 : "Average accuracy of tasks (%)",
                      .decimals = 2,
                      .lower = false,
                      .logarithmic = false,
                      .points = {}};
  for (const ReportRow* row : rows) {
    const std::optional<double> value = average_accuracy(*row, tasks);
    if (!value) continue;
    add_point(accuracy.points, *row, 100 * *value, false);
    if (row->is_original() && std::isfinite(*value)) accuracy.original = 100 * *value;
  }
  keep(figures, std::move(accuracy));
  for (const std::string& text : report.texts) {
    PlotFigure figure{
        .title = "KL divergence from the original on " + text, .decades = true, .points = {}};
    for (const ReportRow* row : rows) {
      const auto found = row->divergence.find(text);
      if (found != row->divergence.end()) add_point(figure.points, *row, found->second, true);
    }
    keep(figures, std::move(figure));
  }
  return figures;
}

std::vector<bool> pareto_front(const std::vector<PlotPoint>& points, bool lower_is_better) {
  const double sign = lower_is_better ? 1 : -1;
  std::vector<bool> front;
  for (const PlotPoint& point : points) {
    front.push_back(std::ranges::none_of(points, [&](const PlotPoint& other) {
      const double better = sign * (point.value - other.value);
      return other.bits <= point.bits && (better > 0 || (better == 0 && other.bits < point.bits));
    }));
  }
  return front;
}

Scale::Scale(double least, double most, double from, double to)
    : least_(least), span_(most > least ? most - least : 1), from_(from), to_(to) {}

std::vector<double> axis_ticks(double least, double most, bool logarithmic) {
  if (!std::isfinite(least) || !std::isfinite(most) || !(most > least)) return {};
  std::vector<double> ticks;
  if (logarithmic && most / least >= 5) {
    const int first = static_cast<int>(std::floor(std::log10(least)));
    const int last = static_cast<int>(std::floor(std::log10(most)));
    const int stride = std::max(1, (last - first + 6) / 7);
    for (int power = first; power <= last; power += stride) {
      for (const double digit : {1.0, 2.0, 3.0, 5.0}) {
        if (digit > 1 && most / least >= 100) break;
        const double tick = digit * std::pow(10.0, power);
        if (tick >= least && tick <= most) ticks.push_back(tick);
      }
    }
    return ticks;
  }
  const double rough = (most - least) / 5, power = std::pow(10.0, std::floor(std::log10(rough)));
  const double digit = rough / power;
  const double step = power * (digit < 1.5 ? 1 : digit < 3.5 ? 2 : digit < 7.5 ? 5 : 10);
  const double first = std::ceil(least / step);
  if (!(std::abs(first) < 1e15)) return {};
  for (double i = first; i * step <= most && ticks.size() < 12; ++i) ticks.push_back(i * step);
  return ticks;
}

nlohmann::json draw(const PlotFigure& figure, const SeriesNumbers& series) {
  double least = INFINITY, most = -INFINITY;
  for (const PlotPoint& point : figure.points) {
    least = std::min(least, point.value);
    most = std::max(most, point.value);
  }
  if (figure.original != 0) {
    least = std::min(least, figure.original);
    most = std::max(most, figure.original);
  }
  // Of a perplexity what is of no use must not hide what is.
  const double edge = figure.lower && !figure.decades ? std::min(most, kOffScale * least) : most;
  const auto scaled = [&](double value) { return figure.logarithmic ? std::log(value) : value; };
  const double low = scaled(least), high = scaled(edge);
  const double margin = std::max(0.04 * (high - low), 1e-9 * std::max(1.0, std::abs(high)));
  const Scale y(low - margin, high + margin, kBottom, kTop);
  const double bits = figure.points.front().bits, most_bits = figure.points.back().bits;
  const double side = std::max(0.15, 0.06 * (most_bits - bits));
  const Scale x(bits - side, most_bits + side, kLeft, kRight);

  nlohmann::json plot = {{"title", figure.title},
                         {"kind", figure.logarithmic ? "logarithmic" : "linear"},
                         {"x_ticks", nlohmann::json::array()},
                         {"y_ticks", nlohmann::json::array()},
                         {"lines", nlohmann::json::array()},
                         {"marks", nlohmann::json::array()},
                         {"off_scale", false},
                         {"original", nullptr},
                         {"front", ""}};
  for (const double tick : axis_ticks(bits - side, most_bits + side, false))
    plot["x_ticks"].push_back({{"at", place(x(tick))}, {"text", fmt::format("{:g}", tick)}});
  const double shown_low = figure.logarithmic ? std::exp(low - margin) : low - margin;
  const double shown_high = figure.logarithmic ? std::exp(high + margin) : high + margin;
  for (const double tick : axis_ticks(shown_low, shown_high, figure.logarithmic)) {
    if (figure.logarithmic && !(tick > 0)) continue;
    plot["y_ticks"].push_back(
        {{"at", place(y(scaled(tick)))}, {"text", fmt::format("{:.4g}", tick)}});
  }
  if (figure.original != 0) {
    plot["original"] = {{"at", place(y(scaled(figure.original)))},
                        {"text", fixed(figure.original, figure.decimals)}};
  }
  std::vector<std::string> paths(series.size());
  const std::vector<bool> front = pareto_front(figure.points, figure.lower);
  std::string steps;
  for (std::size_t i = 0; i < figure.points.size(); ++i) {
    const PlotPoint& point = figure.points[i];
    const auto number =
        static_cast<std::size_t>(std::ranges::find(series, point.series) - series.begin());
    const bool off = figure.lower && point.value > edge;
    const std::string at_x = place(x(point.bits));
    const std::string at_y = place(off ? kTop : y(scaled(point.value)));
    if (number < paths.size())
      paths[number] += fmt::format("{}{} {}", paths[number].empty() ? "M" : "L", at_x, at_y);
    if (front[i]) steps += fmt::format("{}{} {}", steps.empty() ? "M" : "L", at_x, at_y);
    const std::string value =
        figure.decades ? scientific(point.value) : fixed(point.value, figure.decimals);
    if (off) plot["off_scale"] = true;
    plot["marks"].push_back(
        {{"x", at_x},
         {"y", at_y},
         {"color", std::to_string(number % kSeriesColors)},
         {"front", static_cast<bool>(front[i])},
         {"off", off},
         {"value", value},
         {"tip", fmt::format("{}: {:.2f} bits a weight, {}{}", point.label, point.bits, value,
                             front[i] ? ", Pareto front" : "")}});
  }
  for (std::size_t number = 0; number < paths.size(); ++number) {
    if (paths[number].empty()) continue;
    plot["lines"].push_back({{"path", paths[number]},
                             {"color", std::to_string(number % kSeriesColors)},
                             {"name", series[number]}});
  }
  plot["front"] = steps;
  return plot;
}

}  // namespace roundhouse
