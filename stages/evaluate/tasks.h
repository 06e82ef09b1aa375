// Zero-shot tasks as lm-evaluation-harness has them: from the files that data sets are published in to strings, and from
// log-likelihoods to accuracies. Prompts are those of its versions 0.3 and 0.4, which agree.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/model_config.h"
#include "model/tokenizer/tokenizer.h"
#include "stages/evaluate/log_likelihood.h"
#include "stages/evaluate/task_template.h"

namespace roundhouse {

// What is measured.
struct TaskOptions {
  std::string name;            // a key in the results
  std::string task;            // that of a template, or its file: "piqa", "choices", "mine.yaml"
  std::filesystem::path file;  // of a task with subjects: a folder of tables, too
  int limit = 0;               // documents at most (of each subject); 0: all
};

// What reports call the mean of accuracies: no task has this name.
inline constexpr std::string_view kAverage = "average";

struct TextRequest {
  std::string context, continuation;

  bool operator==(const TextRequest&) const = default;
};

struct TaskDocument {
  std::string where;                  // "FILE:12", for messages
  std::vector<TextRequest> requests;  // one for each choice; a single one is a text to be continued
  std::size_t gold = 0;               // the right choice
  std::vector<std::size_t> characters;  // code points of each choice
  std::string subject;                  // of a task with subjects
  std::string page;                     // a text that is scored from its beginning, and what its
  std::size_t words = 0, bytes = 0;     // perplexity is relative to
};

// How answers become figures.
struct TaskScoring {
  TaskMetric metric = TaskMetric::kAccuracy;
  bool has_subjects = false;
  bool mean_of_subjects = false;  // acc, instead of the mean of all documents

  bool wants_greedy() const { return metric == TaskMetric::kGreedy; }
};
TaskScoring scoring_of(const TaskTemplate& task, Protocol protocol);

// Whether a task's documents may come from a folder instead of a file.
bool reads_folders(const TaskTemplate& task);

// The files that read_task() reads: what a figure depends on by their content. Throws InputError where a folder has none.
std::vector<std::filesystem::path> task_sources(const TaskTemplate& task,
                                                const std::filesystem::path& file);

// Throws InputError naming file, line and key for whatever is not as the task's files are.
std::vector<TaskDocument> read_task(const TaskTemplate& task, const std::filesystem::path& file,
                                    int limit);

// What the model reads and is asked, and which of the answers (indices into what measure_log_likelihoods() returns) are those of a
// document's requests, in their order; of a page, those of its windows.
struct TaskSequences {
  std::vector<ScoredSequence> sequences;
  std::vector<std::vector<std::size_t>> results;  // by document
  std::size_t cut = 0;  // documents of which the model does not read the beginning
};

// Splits context and continuation as lm-eval does: white space at the end of a context belongs to the continuation, whose tokens are
// those of both together behind as many as the context has alone.
struct TokenPair {
  std::vector<std::int32_t> context, continuation;

  bool operator==(const TokenPair&) const = default;
};

class RequestEncoder {
 public:
  // Longer inputs lose their beginning: `max_length` tokens are read at most.
  RequestEncoder(const Tokenizer& tokenizer, const ModelConfig& model, Protocol protocol);
  // Throws InputError: nothing is left of the continuation, or it alone is too long.
  TokenPair encode(const TextRequest& request) const;
  TaskSequences encode(std::span<const TaskDocument> documents,
                       const std::function<void()>& tick) const;

 private:
  std::vector<std::int32_t> tokens_of(const std::string& text) const;
  ScoredSequence sequence_of(const TokenPair& pair) const;
  void append_page(const TaskDocument& document, std::vector<ScoredSequence>& sequences) const;

  const Tokenizer& tokenizer_;
  Protocol protocol_;
  std::int64_t max_length_;
  std::int32_t prefix_;  // in place of a context that is empty; -1: the model has none
};

struct TaskResult {
  // {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "documents"}; by task "perplexity", "acc_by_subject", "acc_by_size",
  // "word_perplexity", "byte_perplexity", "bits_per_byte". null: not finite.
  nlohmann::ordered_json figures;
  // One a document: {"document", "log_likelihoods", "gold", "choice", ...}.
  std::vector<nlohmann::ordered_json> answers;
};
TaskResult score_task(const TaskScoring& scoring, std::span<const TaskDocument> documents,
                      const std::vector<std::vector<std::size_t>>& results,
                      std::span<const LogLikelihood> log_likelihoods);

}  // namespace roundhouse
