#include "stages/report/figure_text.h"

#include <cmath>

#include <fmt/format.h>

namespace roundhouse {

std::string fixed(double value, int decimals) {
  if (!std::isfinite(value)) return "not finite";
  if (std::abs(value) >= 1e6) return scientific(value);
  return fmt::format("{:.{}f}", value, decimals);
}

std::string scientific(double value) {
  return std::isfinite(value) ? fmt::format("{:.2e}", value) : "not finite";
}

std::string signed_difference(double value, int decimals) {
  const std::string text = fixed(value, decimals);
  if (text.find_first_of("123456789") == std::string::npos)  // of no sign
    return text.starts_with('-') ? "+" + text.substr(1) : "+" + text;
  return (text.starts_with('-') ? "" : "+") + text;
}

std::string seconds_text(double seconds) {
  if (!std::isfinite(seconds)) return "not finite";
  if (seconds < 120) return fixed(seconds, 1) + " s";
  if (seconds < 7200) return fixed(seconds / 60, 1) + " min";
  return fixed(seconds / 3600, 1) + " h";
}

std::string escape_csv(std::string_view text) {
  std::string escaped;
  const bool number = text.find_first_not_of("0123456789.+-e") == text.npos;
  if (!text.empty() && !number && std::string_view("=+-@").find(text.front()) != text.npos)
    escaped += '\'';
  for (const char c : text) {
    if (c == '"') escaped += '"';
    escaped += c;
  }
  if (escaped.find_first_of(",\"\r\n") == std::string::npos) return escaped;
  return "\"" + escaped + "\"";
}

std::string escape_latex(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("&%$#_{}").find(c) != std::string_view::npos) escaped += '\\';
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

std::string escape_markdown(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (std::string_view("\\|`*_>[]").find(c) != std::string_view::npos) escaped += '\\';
    if (c == '<' || c == '&') {
      escaped += c == '<' ? "&lt;" : "&amp;";
    } else {
      escaped += c == '\n' || c == '\r' ? ' ' : c;
    }
  }
  return escaped;
}

std::string escape_html(std::string_view text) {
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
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

}  // namespace roundhouse
