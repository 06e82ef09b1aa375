// A report small enough to know every figure of.
#pragma once

#include <cmath>

#include "stages/report/report.h"

namespace roundhouse {

inline ReportRow report_row(const std::string& name, const std::string& method, double bits,
                            double perplexity) {
  ReportRow row{.model = "Llama-2-7b-hf", .run = "a", .name = name, .method = method};
  row.variant = method;
  row.bits = bits;
  row.group_size = method.empty() ? 0 : 128;
  row.bits_per_weight = method.empty() ? 16 : bits + 0.15;
  row.perplexity = {{"test", perplexity}};
  return row;
}

inline TaskFigures task_figures(const std::string& kind, double accuracy, double error) {
  TaskFigures task;
  task.kind = kind;
  task.accuracy = Figure{accuracy, error};
  task.documents = 100;
  return task;
}

inline Report example_report() {
  Report report;
  report.title = "Llama-2-7b-hf, quantized";
  report.texts = {"test"};
  report.tasks = {"piqa", "facts"};
  report.rows = {report_row("original", "", 0, 2.0), report_row("rtn-w4g128", "rtn", 4, 2.5),
                 report_row("gptq-w4g128", "gptq", 4, 2.25),
                 report_row("gptq-w2g128", "gptq", 2, NAN)};
  report.rows[0].tasks = {{"piqa", task_figures("piqa", 0.7807, 0.0097)},
                          {"facts", task_figures("choices", 0.99, 0.01)}};
  report.rows[1].tasks = {{"piqa", task_figures("piqa", 0.76, 0.01)},
                          {"facts", task_figures("choices", 0.9, 0.03)}};
  report.rows[2].tasks = {{"piqa", task_figures("piqa", 0.775, 0.01)},
                          {"facts", task_figures("choices", 0.9, 0.03)}};
  report.rows[3].tasks = {{"piqa", task_figures("piqa", 0.5, 0.01)}};
  ReportRun run;
  run.name = "a";
  run.model = "Llama-2-7b-hf";
  report.runs.push_back(run);
  return report;
}

}  // namespace roundhouse
