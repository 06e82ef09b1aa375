// What makes a task of a file of documents: a YAML file, configs/tasks/*.yaml for the tasks that have names, which are part of the
// program, or one of the user's. docs/tasks.md has its keys.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "stages/evaluate/text_template.h"

namespace roundhouse {

// How texts become tokens.
enum class Protocol {
  kLmEval,  // today's: whatever the tokenizer puts in front of a text (LLaMA: <s>) stands in front of every context
  kPaper  // that of the papers' tables (lm-eval until 2025): nothing in front; MMLU is the plain mean of its subjects
};
std::string_view name_of(Protocol protocol);  // "lm-eval", "paper"

enum class TaskMetric {
  kAccuracy,            // acc: is the right choice the likeliest?
  kNormalizedAccuracy,  // acc_norm, too: log-likelihoods a character
  kGreedy,     // acc: is the text continued by greedy decoding? and perplexity of the continuation
  kPerplexity  // of whole texts, relative to words and bytes
};

inline constexpr std::size_t kMostChoices = 1000;

// One text of a template, and where it stands.
struct TaskText {
  std::string where;  // "mine.yaml:4: context"
  TextTemplate text;
};

struct TaskTemplate {
  // What figures depend on: a hash of all keys but `files`, however they are written. That of a named task which is what it was
  // when results began to name it is that name.
  std::string identity;
  std::vector<std::string>
      files;                    // where documents may be within a folder of data sets, best first
  bool wikitext_pages = false;  // files that are no JSON are text, of which each page is a document
  std::string labels_beside;    // the field that a file of labels fills; empty: none
  // Documents of several subjects, with a figure for each.
  struct Subjects {
    std::string field;   // of a document: its subject
    std::string ending;  // a folder holds a file for each subject, which has this behind it
    std::vector<std::string> columns;  // of such a table without a row of names
  };
  std::optional<Subjects> subjects;
  std::map<Protocol, bool> mean_of_subjects;  // instead of that of all documents

  std::vector<std::pair<std::string, TaskText>> names;  // each may use those before it
  // Either one context for all, or one for each choice with one continuation for all.
  std::vector<TaskText> contexts;
  std::vector<TaskText> choices;  // a single one that is a list: its texts
  std::string delimiter;          // between context and choice
  std::optional<TaskText> gold;
  std::optional<TaskText> labels;              // of the document's choices
  std::map<std::string, std::size_t> answers;  // what `gold` may be instead
  std::optional<TaskText> counted;             // of pages: whose words and bytes are counted
  TaskMetric metric = TaskMetric::kAccuracy;
};

// Tasks that have names, in the order of the reports.
const std::vector<std::string>& task_names();
bool is_task_file(const std::string& task);  // a path, not a name: it ends with .yaml or .yml
// Of a name or a path. Throws InputError naming file and line.
TaskTemplate read_task_template(const std::string& task);
TaskTemplate parse_task_template(const std::string& yaml, const std::string& file);

}  // namespace roundhouse
