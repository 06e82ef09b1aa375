#include "stages/report/report.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "stages/report/format.h"

namespace roundhouse {
namespace {

using Cells = std::vector<std::string>;

std::string number(const char* pattern, double value) {
  if (std::isnan(value)) return "not finite";
  return format(pattern, value);
}

std::vector<std::string> texts_of(const Report& report) {
  std::set<std::string> names;
  for (const ReportRow& row : report.rows) {
    for (const auto& [name, value] : row.perplexity) names.insert(name);
  }
  return {names.begin(), names.end()};
}

// "3.01", and "3.01 + 0.22" with a sparse part.
std::string bits_of(const ReportRow& row) {
  if (row.bits_per_weight <= 0) return "";
  const std::string sparse =
      row.sparse_bits_per_weight > 0 ? format(" + %.2f", row.sparse_bits_per_weight) : "";
  return format("%.2f", row.bits_per_weight) + sparse;
}

std::vector<std::string> tasks_of(const Report& report) {
  std::set<std::string> names;
  for (const ReportRow& row : report.rows) {
    for (const auto& [name, accuracy] : row.accuracy) names.insert(name);
  }
  return {names.begin(), names.end()};
}

std::vector<std::string> compared_texts_of(const Report& report) {
  std::set<std::string> names;
  for (const ReportRow& row : report.rows) {
    for (const auto& [name, nats] : row.divergence) names.insert(name);
  }
  return {names.begin(), names.end()};
}

// The plain mean of the tasks, as the papers' tables have it; "" where one of them is missing.
std::string average(const ReportRow& row, const std::vector<std::string>& tasks) {
  if (row.accuracy.size() != tasks.size()) return "";
  double sum = 0;
  for (const auto& [name, accuracy] : row.accuracy) sum += accuracy.value;
  return number("%.2f", 100 * sum / static_cast<double>(tasks.size()));
}

// Header and rows; the same cells for every form.
std::vector<Cells> cells_of(const Report& report) {
  const std::vector<std::string> texts = texts_of(report);
  Cells header{"recipe", "bits/weight"};
  for (const std::string& text : texts) header.push_back("perplexity " + text);
  const std::vector<std::string> compared = compared_texts_of(report);
  for (const std::string& text : compared) header.push_back("KL " + text);
  const std::vector<std::string> tasks = tasks_of(report);
  for (const std::string& task : tasks) header.push_back(task + " %");
  if (tasks.size() > 1) header.emplace_back("average %");
  header.insert(header.end(), {"relative error", "seconds", "fallbacks"});
  std::vector<Cells> table{header};
  for (const ReportRow& row : report.rows) {
    Cells cells{row.name, bits_of(row)};
    for (const std::string& text : texts) {
      const auto found = row.perplexity.find(text);
      cells.push_back(found == row.perplexity.end() ? "" : number("%.4f", found->second));
    }
    for (const std::string& text : compared) {
      const auto found = row.divergence.find(text);
      cells.push_back(found == row.divergence.end() ? "" : number("%.2e", found->second));
    }
    for (const std::string& task : tasks) {
      const auto found = row.accuracy.find(task);
      cells.push_back(found == row.accuracy.end() ? "" : number("%.2f", 100 * found->second.value));
    }
    if (tasks.size() > 1) cells.push_back(average(row, tasks));
    cells.push_back(row.relative_error != 0 ? number("%.2e", row.relative_error) : "");
    cells.push_back(row.seconds > 0 ? format("%.1f", row.seconds) : "");
    cells.push_back(std::to_string(row.fallbacks));
    table.push_back(cells);
  }
  return table;
}

// Quoted where RFC 4180 asks for it.
std::string escape_csv(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string escaped = "\"";
  for (const char c : text) escaped += c == '"' ? std::string("\"\"") : std::string(1, c);
  return escaped + "\"";
}

// Horizontal bars of perplexity; the axis is logarithmic, since a broken 2-bit model may be a thousand times worse.
std::string bars(const Report& report, const std::string& text) {
  double least = INFINITY, most = -INFINITY;
  for (const ReportRow& row : report.rows) {
    const auto found = row.perplexity.find(text);
    if (found == row.perplexity.end() || !std::isfinite(found->second) || found->second <= 0)
      continue;
    least = std::min(least, found->second);
    most = std::max(most, found->second);
  }
  if (!(least <= most)) return "";
  const double left = std::log(least) - 0.05 * std::max(0.1, std::log(most / least));
  const double span = std::max(1e-9, std::log(most) - left);
  constexpr int kLabel = 220, kWidth = 460, kRow = 26;
  std::string svg = format("<svg viewBox=\"0 0 %d %zu\" role=\"img\">", kLabel + kWidth + 110,
                           report.rows.size() * kRow + 6);
  int y = 4;
  for (const ReportRow& row : report.rows) {
    const auto found = row.perplexity.find(text);
    if (found == row.perplexity.end()) continue;
    svg += format("<text x=\"%d\" y=\"%d\" text-anchor=\"end\">", kLabel - 10, y + 15) +
           escape_html(row.name) + "</text>";
    const double width = std::isfinite(found->second)
                             ? kWidth * std::max(0.004, (std::log(found->second) - left) / span)
                             : kWidth;
    svg += format("<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\"/>", kLabel, y, width,
                  kRow - 6);
    svg += format("<text x=\"%.1f\" y=\"%d\">", kLabel + width + 8, y + 15) +
           number("%.3f", found->second) + "</text>";
    y += kRow;
  }
  return "<h2>Perplexity on " + escape_html(text) + " (logarithmic)</h2>\n" + svg + "</svg>\n";
}

// With a backslash where LaTeX would obey; what has no letter of its own becomes a word.
std::string escape_latex(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string("&%$#_{}").find(c) != std::string::npos) escaped += '\\';
    if (c == '\\') {
      escaped += "\\textbackslash{}";
    } else if (c == '~' || c == '^') {
      escaped += std::string("\\") + c + "{}";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string to_latex(const Report& report) {
  const std::vector<Cells> table = cells_of(report);
  std::string text = "% " + escape_latex(report.title) + "\n\\begin{tabular}{l" +
                     std::string(table[0].size() - 1, 'r') + "}\n\\toprule\n";
  for (std::size_t r = 0; r < table.size(); ++r) {
    for (std::size_t i = 0; i < table[r].size(); ++i)
      text += (i == 0 ? "" : " & ") + escape_latex(table[r][i]);
    text += r == 0 ? " \\\\\n\\midrule\n" : " \\\\\n";
  }
  return text + "\\bottomrule\n\\end{tabular}\n";
}

std::string to_text(const Report& report) {
  const std::vector<Cells> table = cells_of(report);
  std::vector<std::size_t> width(table[0].size());
  for (const Cells& row : table) {
    for (std::size_t i = 0; i < row.size(); ++i) width[i] = std::max(width[i], row[i].size());
  }
  std::string text = report.title + "\n";
  for (const Cells& row : table) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string gap(width[i] - row[i].size(), ' ');
      text += (i == 0 ? "  " + row[i] + gap : "   " + gap + row[i]);
    }
    text += "\n";
  }
  for (const std::string& note : report.notes) text += "  " + note + "\n";
  return text;
}

std::string to_markdown(const Report& report) {
  const std::vector<Cells> table = cells_of(report);
  std::string text = "# " + report.title + "\n\n";
  for (std::size_t r = 0; r < table.size(); ++r) {
    text += "|";
    for (const std::string& cell : table[r]) text += " " + cell + " |";
    text += "\n";
    if (r > 0) continue;
    for (std::size_t i = 0; i < table[0].size(); ++i) text += i == 0 ? "|---|" : "---:|";
    text += "\n";
  }
  for (const std::string& note : report.notes) text += "\n" + note + "\n";
  return text;
}

std::string to_csv(const Report& report) {
  std::string text;
  for (const Cells& row : cells_of(report)) {
    for (std::size_t i = 0; i < row.size(); ++i) text += (i == 0 ? "" : ",") + escape_csv(row[i]);
    text += "\r\n";
  }
  return text;
}

std::string to_html(const Report& report) {
  std::string html = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
                     escape_html(report.title) +
                     "</title>\n<style>body{font:16px/1.5 "
                     "system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em;"
                     "color:#222;background:#fff}table{border-collapse:collapse}td,th{padding:.3em "
                     ".9em;border-bottom:1px solid #ccc;"
                     "text-align:right}td:first-child,th:first-child{text-align:left}svg{width:100%"
                     ";font-size:14px}rect{fill:#3b6ea5}text{fill:currentColor}"
                     ".axis{fill:none;stroke:currentColor}table{display:block;overflow-x:auto}"
                     "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}"
                     "@media print{body{color:#000;background:#fff;max-width:none}}"
                     "</style></head>\n<body><h1>" +
                     escape_html(report.title) + "</h1>\n<table>\n";
  const std::vector<Cells> table = cells_of(report);
  for (std::size_t r = 0; r < table.size(); ++r) {
    const std::string tag = r == 0 ? "th" : "td";
    html += "<tr>";
    for (const std::string& cell : table[r])
      html += "<" + tag + ">" + escape_html(cell) + "</" + tag + ">";
    html += "</tr>\n";
  }
  html += "</table>\n";
  for (const std::string& text : texts_of(report)) html += plot(report, text) + bars(report, text);
  for (const std::string& note : report.notes) html += "<p>" + escape_html(note) + "</p>\n";
  return html + "</body></html>\n";
}

}  // namespace roundhouse
