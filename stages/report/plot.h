// The picture that decides: bits a weight against a figure, one line a method, as places in a drawing. The page's template draws them.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/report/report.h"

namespace roundhouse {

struct PlotPoint {
  double bits = 0, value = 0;
  std::string label;   // the recipe
  std::string series;  // the method
};

// A method's place among all: its color and its mark, the same in every picture of a page.
inline constexpr std::size_t kSeriesColors = 8;  // then they begin anew
using SeriesNumbers = std::vector<std::string>;
SeriesNumbers series_of(const Report& report);

struct PlotFigure {
  std::string title;  // "Perplexity on test"
  int decimals = 4;   // of values in words
  bool lower = true;  // is better
  bool logarithmic = true;
  bool decades = false;           // of its nature it spans them: nothing is off the scale
  std::vector<PlotPoint> points;  // of finite values
  double original = 0;            // 0: unknown
};

// Those pictures that a model's rows have at least two points for: perplexities, KL divergences, the average accuracy.
std::vector<PlotFigure> plot_figures(const std::vector<const ReportRow*>& rows,
                                     const Report& report);

// Which points no other one of as few bits or fewer is better than.
std::vector<bool> pareto_front(const std::vector<PlotPoint>& points, bool lower_is_better);

// From values to places; equal ends become a range.
class Scale {
 public:
  Scale(double least, double most, double from, double to);
  double operator()(double value) const { return from_ + (value - least_) / span_ * (to_ - from_); }

 private:
  double least_, span_, from_, to_;
};

// 3 to 8 round values within a range, ascending: 1, 2 or 5 times a power of ten apart; of a logarithmic axis whose
// ends are far apart 1, 2, 3 and 5 times the powers of ten, or these alone.
std::vector<double> axis_ticks(double least, double most, bool logarithmic);

// For the template: axes, lines, marks, all texts formatted. A value more than kOffScale times the best stands at the edge, with an arrow.
inline constexpr double kOffScale = 4;
nlohmann::json draw(const PlotFigure& figure, const SeriesNumbers& series);

}  // namespace roundhouse
