// The figures of a run as a table (text, Markdown, CSV) and as one page with a picture (HTML, nothing loaded from outside).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace roundhouse {

struct ReportRow {
  std::string name;  // recipe, or the original model
  // Of the quantized linears, with scales and zero points or tables; 0: unknown. Their sparse parts come on top.
  double bits_per_weight = 0;
  double sparse_bits_per_weight = 0;
  double relative_error = 0;  // what the method minimised, over what it is relative to; 0: unknown
  std::map<std::string, double> perplexity;  // by text; NaN where the model's output was not finite
  double seconds = 0;                        // of quantization, all blocks
  int fallbacks = 0;  // linears that needed more damping, a diagonal floor or plain rounding
};

struct Report {
  std::string title;
  std::vector<ReportRow> rows;  // the original first
  std::vector<std::string> notes;
};

std::string to_text(const Report& report);
std::string to_markdown(const Report& report);
std::string to_csv(const Report& report);
std::string to_html(const Report& report);

}  // namespace roundhouse
