// The figures of a run as a table (text, Markdown, CSV) and as one page with a picture (HTML, nothing loaded from outside).
#pragma once

#include <map>
#include <string>
#include <vector>

namespace roundhouse {

struct Accuracy {
  double value = 0;  // of 1
  double standard_error = 0;
};

struct ReportRow {
  std::string name;         // recipe, or the original model
  std::string method = {};  // "gptq"; empty: the original model
  // Of the quantized linears, with scales and zero points or tables; 0: unknown. Their sparse parts come on top.
  double bits_per_weight = 0;
  double sparse_bits_per_weight = 0;
  double relative_error = 0;  // what the method minimised, over what it is relative to; 0: unknown
  std::map<std::string, double> perplexity =
      {};  // by text; NaN where the model's output was not finite
  std::map<std::string, double> divergence = {};  // by text: mean of KL from the original, nats
  std::map<std::string, Accuracy> accuracy = {};  // by task: acc of lm-evaluation-harness
  double seconds = 0;                             // of quantization, all blocks
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
std::string to_latex(const Report& report);  // a tabular, by booktabs

// Bits a weight against perplexity of a text, as SVG: a line for each method, a ring around each recipe that none with as few bits
// beats; the recipe of a point is its tooltip. "": not two recipes have both.
std::string plot(const Report& report, const std::string& text);
std::string escape_html(const std::string& text);

}  // namespace roundhouse
