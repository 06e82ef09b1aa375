#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "stages/report/format.h"
#include "stages/report/report.h"

namespace roundhouse {
namespace {

constexpr double kLeft = 70, kRight = 570, kTop = 14, kBottom = 330;  // of 720 x 380
// Told apart by people who see no red or green, too (Okabe and Ito).
constexpr const char* kColors[] = {"#0072b2", "#d55e00", "#009e73",
                                   "#cc79a7", "#e69f00", "#56b4e9"};

struct Point {
  const ReportRow* row;
  double bits, perplexity;
};

std::vector<Point> points_of(const Report& report, const std::string& text) {
  std::vector<Point> points;
  for (const ReportRow& row : report.rows) {
    const auto found = row.perplexity.find(text);
    if (row.method.empty() || !(row.bits_per_weight > 0) || found == row.perplexity.end()) continue;
    if (std::isfinite(found->second) && found->second > 0)
      points.push_back({&row, row.bits_per_weight + row.sparse_bits_per_weight, found->second});
  }
  std::ranges::stable_sort(points, {}, &Point::bits);
  return points;
}

// From values to the picture's coordinates; equal ends become a range.
class Scale {
 public:
  Scale(double least, double most, double from, double to)
      : least_(least), span_(std::max(most - least, 1e-9)), from_(from), to_(to) {}
  double operator()(double value) const { return from_ + (value - least_) / span_ * (to_ - from_); }

 private:
  double least_, span_, from_, to_;
};

std::string axes(const Scale& x, const Scale& y, double bits, double most_bits, double least,
                 double most) {
  std::string svg =
      format("<path class=\"axis\" d=\"M%g %gV%gH%g\"/>\n", kLeft, kTop, kBottom, kRight);
  for (double tick = std::ceil(bits); tick <= most_bits; ++tick) {
    svg += format("<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%.0f</text>\n", x(tick),
                  kBottom + 20, tick);
  }
  for (int i = 0; i <= 4; ++i) {
    const double value = std::exp(std::log(least) + i / 4.0 * std::log(most / least));
    svg += format("<text x=\"%g\" y=\"%.1f\" text-anchor=\"end\">%.3g</text>\n", kLeft - 8,
                  y(std::log(value)) + 5, value);
  }
  return svg + format("<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">bits a weight</text>\n",
                      (kLeft + kRight) / 2, kBottom + 42);
}

}  // namespace

std::string plot(const Report& report, const std::string& text) {
  const std::vector<Point> points = points_of(report, text);
  if (points.size() < 2) return "";
  const auto [low, high] = std::ranges::minmax(points, {}, &Point::perplexity);
  const double least = low.perplexity, most = std::max(high.perplexity, least * 1.0001);
  const double bits = points.front().bits - 0.2, most_bits = points.back().bits + 0.2;
  const Scale x(bits, most_bits, kLeft, kRight);
  const Scale y(std::log(least), std::log(most), kBottom - 12, kTop + 8);

  std::map<std::string, std::vector<Point>> methods;
  for (const Point& point : points) methods[point.row->method].push_back(point);
  std::string svg = "<svg class=\"plot\" viewBox=\"0 0 720 380\" role=\"img\">\n" +
                    axes(x, y, bits, most_bits, least, most);
  std::size_t index = 0;
  for (const auto& [method, own] : methods) {
    const char* color = kColors[index % std::size(kColors)];
    std::string path;
    for (const Point& point : own)
      path += format("%s%.1f %.1f", path.empty() ? "M" : "L", x(point.bits),
                     y(std::log(point.perplexity)));
    svg += format("<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" d=\"", color) + path +
           "\"/>\n";
    const double label = kTop + 14 + 22 * static_cast<double>(index);
    svg += format("<circle cx=\"%g\" cy=\"%g\" r=\"4.5\" fill=\"%s\"/>", kRight + 24, label - 5,
                  color) +
           format("<text x=\"%g\" y=\"%g\">", kRight + 36, label) + escape_html(method) +
           "</text>\n";
    for (const Point& point : own) {
      const std::string at =
          format("<circle cx=\"%.1f\" cy=\"%.1f\"", x(point.bits), y(std::log(point.perplexity)));
      const bool front = std::ranges::none_of(points, [&](const Point& other) {
        return other.perplexity < point.perplexity && other.bits <= point.bits;
      });
      if (front) svg += at + format(" r=\"8.5\" fill=\"none\" stroke=\"%s\"/>", color);
      svg += at + format(" r=\"4.5\" fill=\"%s\"><title>", color) + escape_html(point.row->name) +
             format(": %.2f bits, %.4f</title></circle>\n", point.bits, point.perplexity);
    }
    ++index;
  }
  return "<h2>Bits a weight and perplexity on " + escape_html(text) +
         "</h2>\n<p>Logarithmic; rings: no recipe of as few bits is better.</p>\n" + svg +
         "</svg>\n";
}

}  // namespace roundhouse
