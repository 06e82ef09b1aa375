// What a report is made of: the figures of runs, as they were read from their folders. Everything in it comes from outside and may be
// missing, not finite or huge; texts are one printable line each.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace roundhouse {

// NaN: the model's output was not finite.
struct Figure {
  double value = 0;
  double standard_error = 0;  // 0: unknown
};

struct TaskFigures {
  std::string kind;  // "piqa", "choices": what published figures are looked up by
  std::optional<Figure> accuracy, normalized;  // of 1: acc and acc_norm of lm-evaluation-harness
  std::optional<double> word_perplexity;
  std::int64_t documents = 0;
};

// In words and as a part of a picture: errors by block, then by linear.
using BlockErrors = std::map<int, std::map<std::string, double>>;

// One recipe of a model, or the original model.
struct ReportRow {
  std::string model = {};   // of the model's folder: "Llama-2-7b-hf"
  std::string run = {};     // of the run's folder
  std::string name;         // recipe, or "original"
  std::string method = {};  // "gptq"; empty: the original
  std::string variant =
      {};  // the method, and which of its options are not the default: "gptq", "rtn symmetric"
  double bits = 0;     // asked for: 4, 2.6; 0: unknown
  int group_size = 0;  // -1: the whole row or a table for each; 0: unknown
  bool symmetric = false;
  bool overridden =
      false;  // some linears are otherwise than `bits` and the rest say: no paper has that
  // Of the linears, 16 where one is left as it is, with scales and zero points or tables; 0: unknown. Their sparse parts come on top.
  double bits_per_weight = 0;
  double sparse_bits_per_weight = 0;
  double outside_bits_per_weight =
      0;                      // of those outside the blocks, apart; 0: they stay as they are
  double relative_error = 0;  // what the method minimised, over what it is relative to; 0: unknown
  std::map<std::string, double> perplexity = {};  // by text: of a token
  std::map<std::string, double> divergence = {};  // by text: mean of KL from the original, nats
  std::map<std::string, TaskFigures> tasks = {};
  double seconds = 0;                         // of quantization, all blocks
  std::map<std::string, double> phases = {};  // what of them went where
  int blocks = 0;                             // of the model; 0: unknown, and `include` is empty
  std::vector<std::string> include = {};      // of kOuterLinears: what is quantized behind them
  BlockErrors errors = {};                    // relative; behind the blocks: of what is included
  int fallbacks = 0;  // linears that needed more damping, a diagonal floor or plain rounding

  double all_bits() const { return bits_per_weight + sparse_bits_per_weight; }
  bool is_original() const { return method.empty(); }
};

// A piece of work of neighbouring ranks; seconds since 1970.
struct Span {
  int first_rank = 0;
  int ranks = 1;
  double begin = 0, end = 0;
  std::string kind;                           // "quantize", "gradients", "export" or "evaluate"
  std::string what;                           // "gptq-w4g128 block 3"
  std::map<std::string, double> phases = {};  // seconds of its parts
};

// Activations on their way from one rank to another; seconds since 1970, each by the clock of its end.
struct Transfer {
  int from = 0, to = 0;
  double begin = 0, end = 0;
  double messages = 1, bytes = 0;
  std::string what;  // "gptq-w4g128 before block 3"
};

struct ReportRun {
  std::string name;
  std::string model;
  std::vector<Span> spans;
  std::vector<Transfer> transfers;
  std::vector<std::string> missing;    // in words: what is not done or not measured yet
  std::vector<std::string> remarks;    // what does not compare, what was damaged
  std::vector<std::string> fallbacks;  // fallbacks and dropped samples, in words
  std::vector<std::pair<std::string, std::string>> provenance;  // "model", "hosts", ...
  std::string config;                                           // YAML, of several lines
};

struct Report {
  std::string title;
  std::string made;                       // when and by which program
  std::vector<std::string> texts, tasks;  // in the order of the configs
  std::vector<ReportRow> rows;            // by model; the original first
  std::vector<ReportRun> runs;
};

// "W4G128"; "W4" where there are no groups; "" where the bits are unknown.
std::string width_of(const ReportRow& row);

// The plain mean over `tasks` of acc, as the papers' tables have it; nothing where one of them is missing, NaN where one is not finite.
std::optional<double> average_accuracy(const ReportRow& row, const std::vector<std::string>& tasks);

// The tasks that any row has an accuracy, or a word perplexity, of.
std::vector<std::string> accuracy_tasks(const Report& report);
std::vector<std::string> word_perplexity_tasks(const Report& report);

// Rows of each model, in the order of the report.
std::vector<std::pair<std::string, std::vector<const ReportRow*>>> rows_by_model(
    const Report& report);

}  // namespace roundhouse
