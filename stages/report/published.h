// Figures that papers print, to stand beside one's own: configs/published/*.json, which are part of the program. Each file says where it
// has them from. Accuracies are in percent.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "stages/report/report.h"

namespace roundhouse {

struct PublishedFigure {
  double value;
  std::string paper;   // "SignRound"
  std::string remark;  // what was particular about it; mostly empty
};

// The name that papers' models are looked up by: "meta-llama/Llama-2-7b-hf" is "llama27b".
std::string plain_model_name(const std::string& model);

class PublishedTables {
 public:
  PublishedTables();  // Throws Error if a file that is part of the program is not as it should be

  // Of the same model, method, bits and groups, on an asymmetric grid; the first paper that has it. `metric` is "acc", "acc_norm" or, of a
  // perplexity, "". `column`: the kind of a task.
  std::optional<PublishedFigure> find(const ReportRow& row, const std::string& column,
                                      const std::string& metric) const;
  // A paper's average is one of the same tasks or none.
  std::optional<PublishedFigure> find_average(const ReportRow& row, std::vector<std::string> kinds,
                                              const std::string& metric) const;
  // Where the figures are from, of those papers that have any of these rows.
  std::vector<std::string> sources(const Report& report) const;

 private:
  struct Row {
    std::string model, method;
    double bits = 0;
    int group_size = 0;
    std::vector<double> figures;
    std::string remark;

    bool is_of(const ReportRow& row) const;
  };
  struct Paper {
    std::string name, source, metric;
    std::vector<std::string> columns;
    std::vector<Row> rows;
  };
  std::vector<Paper> papers_;
};

}  // namespace roundhouse
