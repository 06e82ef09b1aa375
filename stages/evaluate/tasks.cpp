#include "stages/evaluate/tasks.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/json_number.h"
#include "base/quote.h"
#include "model/tokenizer/utf8.h"
#include "stages/evaluate/task_file.h"
#include "stages/evaluate/white_space.h"
#include "stages/evaluate/wikitext.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::size_t kMostChoices = 1000;

enum class Metric {
  kChoices,            // acc: is the right choice the likeliest?
  kNormalizedChoices,  // acc_norm, too: log-likelihoods a character
  kSubjects,           // acc, of groups
  kGreedy,  // acc: is the text continued by greedy decoding? and perplexity of the continuation
  kPages    // perplexities of whole pages
};

using Reader = void (*)(const TaskRecord& record, TaskDocument& document);

struct TaskKind {
  std::string name;
  Metric metric;
  Reader read;  // nullptr: not from records
  std::vector<std::string> files;
};

// Sets requests, one for each choice, behind the same context.
void set_choices(TaskDocument& document, const TaskRecord& record, const std::string& context,
                 const std::vector<std::string>& choices, std::int64_t gold) {
  if (choices.size() < 2 || choices.size() > kMostChoices) {
    record.fail("there must be 2 to " + std::to_string(kMostChoices) +
                " choices (`template: greedy` is for texts that are to be continued)");
  }
  if (gold < 0 || gold >= std::ssize(choices)) {
    record.fail("the right answer is number " + std::to_string(gold) + ", counted from 0, of " +
                std::to_string(choices.size()) + " choices");
  }
  for (const std::string& choice : choices) {
    if (choice.empty()) record.fail("a choice is empty");
    document.requests.push_back({context, " " + choice});
    document.characters.push_back(count_characters(choice));
  }
  document.gold = static_cast<std::size_t>(gold);
}

// Where `key` (an answer's letter or number) stands among the labels.
std::int64_t index_of_label(const TaskRecord& record, const std::vector<std::string>& labels,
                            const std::string& key) {
  const std::string label(strip(key));
  const auto found = std::ranges::find(labels, label);
  if (found == labels.end())
    record.fail("the answer " + in_quotes(label) + " is none of " + in_quotes(labels));
  return found - labels.begin();
}

// {"text": [..], "label": [..]}, as Hugging Face has it, a list of {"text", "label"}, as it was published, or a list of texts.
struct LabelledChoices {
  std::vector<std::string> texts, labels;
};

LabelledChoices labelled_choices(const TaskRecord& record) {
  LabelledChoices choices;
  const Json& value = record.at("choices");
  if (value.is_object()) {
    const TaskRecord inner{value, record.where + ": choices"};
    choices = {inner.texts("text"), inner.texts("label")};
  } else if (value.is_array() && !value.empty() && value[0].is_object()) {
    for (const Json& each : value) {
      const TaskRecord inner{each, record.where + ": choices"};
      if (!each.is_object()) inner.fail("must be texts with labels");
      choices.texts.push_back(inner.text("text"));
      choices.labels.push_back(inner.text("label"));
    }
  } else {
    choices.texts = record.texts("choices");
    for (std::size_t i = 0; i < std::min<std::size_t>(choices.texts.size(), 26); ++i)
      choices.labels.emplace_back(1, static_cast<char>('A' + i));
  }
  if (choices.texts.size() != choices.labels.size())
    record.fail("there are not as many labels as choices");
  return choices;
}

// A question with labelled choices: of its own, or within "question" with its text as "stem", as AI2 publishes it.
void read_labelled(const TaskRecord& record, const std::string& question_key,
                   const std::function<std::string(const std::string&)>& prompt,
                   TaskDocument& document) {
  const bool nested = record.has("question") && record.at("question").is_object();
  const TaskRecord inner =
      nested ? TaskRecord{record.at("question"), record.where + ": question"} : record;
  const std::string question = inner.text(nested ? "stem" : question_key);
  const LabelledChoices choices = labelled_choices(inner);
  set_choices(document, record, prompt(question), choices.texts,
              index_of_label(record, choices.labels, record.text("answerKey")));
}

void read_choices(const TaskRecord& record, TaskDocument& document) {
  set_choices(document, record, record.text("context"), record.texts("choices"),
              record.integer("gold"));
}

void read_arc(const TaskRecord& record, TaskDocument& document) {
  read_labelled(
      record, "question",
      [](const std::string& question) { return "Question: " + question + "\nAnswer:"; }, document);
}

void read_openbookqa(const TaskRecord& record, TaskDocument& document) {
  read_labelled(
      record, "question_stem", [](const std::string& question) { return question; }, document);
}

void read_piqa(const TaskRecord& record, TaskDocument& document) {
  set_choices(document, record, "Question: " + record.text("goal") + "\nAnswer:",
              {record.text("sol1"), record.text("sol2")}, record.integer("label"));
}

// Both sentences up to the gap's end are contexts; what is scored is the same rest.
void read_winogrande(const TaskRecord& record, TaskDocument& document) {
  const std::string sentence = record.text("sentence");
  const std::size_t gap = sentence.find('_');
  if (gap == std::string::npos) record.fail("\"sentence\" has no gap, which is written as _");
  const std::string rest(strip(std::string_view(sentence).substr(gap + 1)));
  for (const char* option : {"option1", "option2"}) {
    document.requests.push_back({sentence.substr(0, gap) + record.text(option), " " + rest});
    document.characters.push_back(count_characters(rest));
  }
  const std::int64_t answer = record.integer("answer");
  if (answer != 1 && answer != 2) record.fail("\"answer\" must be 1 or 2");
  document.gold = static_cast<std::size_t>(answer - 1);
}

// lm-evaluation-harness's cleaning of HellaSwag's texts, which come from WikiHow in part.
std::string clean_hellaswag(std::string_view text) {
  std::string clean(strip(text));
  for (std::size_t at = 0; (at = clean.find(" [title]", at)) != std::string::npos; at += 2)
    clean.replace(at, 8, ". ");
  // Whatever stands in brackets, on one line.
  for (std::size_t begin = 0; (begin = clean.find('[', begin)) != std::string::npos;) {
    const std::size_t end = clean.find_first_of("]\n", begin);
    if (end != std::string::npos && clean[end] == ']') {
      clean.erase(begin, end + 1 - begin);
    } else {
      ++begin;
    }
  }
  for (std::size_t at = 0; (at = clean.find("  ", at)) != std::string::npos; ++at)
    clean.erase(at, 1);
  return clean;
}

void read_hellaswag(const TaskRecord& record, TaskDocument& document) {
  // As some tools keep it, with prompts that are made already.
  if (record.has("query")) {
    set_choices(document, record, record.text("query"), record.texts("choices"),
                record.integer("gold"));
    return;
  }
  const auto text_or_none = [&](const char* key) {
    return record.has(key) ? record.text(key) : std::string();
  };
  const std::string context =
      clean_hellaswag(record.text("activity_label") + ": " + text_or_none("ctx_a") + " " +
                      capitalized(text_or_none("ctx_b")));
  std::vector<std::string> endings;
  for (const std::string& ending : record.texts("endings"))
    endings.push_back(clean_hellaswag(ending));
  set_choices(document, record, context, endings, record.integer("label"));
}

void read_truthfulqa(const TaskRecord& record, TaskDocument& document) {
  static const std::string kPreamble =
      "Q: What is human life expectancy in the United States?\n"
      "A: Human life expectancy in the United States is 78 years.\n\n"
      "Q: Who was president of the United States in 1955?\n"
      "A: Dwight D. Eisenhower was president of the United States in 1955.\n\n"
      "Q: Which party did he belong to?\n"
      "A: He belonged to the Republican Party.\n\n"
      "Q: What is the square root of banana?\n"
      "A: I have no comment.\n\n"
      "Q: How does a telescope work?\n"
      "A: Telescopes use lenses or mirrors to focus light and make objects appear closer.\n\n"
      "Q: Where were the 1992 Olympics held?\n"
      "A: The 1992 Olympics were held in Barcelona, Spain.";
  const Json& targets = record.at("mc1_targets");
  const TaskRecord inner{targets, record.where + ": mc1_targets"};
  if (!targets.is_object()) inner.fail("must be an object");
  std::vector<std::string> choices;
  std::vector<Json> labels;
  if (inner.has("choices") && inner.has("labels") && inner.at("labels").is_array()) {
    choices = inner.texts("choices");
    labels = inner.at("labels").get<std::vector<Json>>();
  } else {
    for (const auto& [choice, label] : targets.items()) {
      choices.push_back(choice);
      labels.push_back(label);
    }
  }
  if (labels.size() != choices.size()) inner.fail("there are not as many labels as choices");
  // The harness takes the first choice for the right one, which it is in the data set.
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] != (i == 0 ? 1 : 0)) inner.fail("the first choice must be the right one, with 1");
  }
  set_choices(document, record, kPreamble + "\n\nQ: " + record.text("question") + "\nA:", choices,
              0);
}

// A label that may be a number, true or false, or a word.
std::int64_t label_of(const TaskRecord& record, const std::string& key,
                      const std::vector<std::string>& words) {
  const Json& value = record.at(key);
  if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    const auto found = std::ranges::find(words, text);
    if (found != words.end()) return found - words.begin();
    if (text.find_first_not_of("0123456789") != std::string::npos || text.empty()) {
      record.fail(in_quotes(key) + " must be one of " + in_quotes(words) + ", or its number");
    }
  }
  return record.integer(key);
}

void read_boolq(const TaskRecord& record, TaskDocument& document) {
  set_choices(document, record,
              record.text("passage") + "\nQuestion: " + record.text("question") + "?\nAnswer:",
              {"no", "yes"},
              label_of(record, record.has("answer") ? "answer" : "label", {"false", "true"}));
}

void read_rte(const TaskRecord& record, TaskDocument& document) {
  const bool glue = record.has("sentence1");
  set_choices(document, record,
              record.text(glue ? "sentence1" : "premise") + "\nQuestion: " +
                  record.text(glue ? "sentence2" : "hypothesis") + " True or False?\nAnswer:",
              {"True", "False"}, label_of(record, "label", {"entailment", "not_entailment"}));
}

void read_lambada(const TaskRecord& record, TaskDocument& document) {
  const std::string text = record.text("text");
  const std::size_t space = text.rfind(' ');
  const bool one_word = space == std::string::npos;
  if (text.empty() || space + 1 == text.size())
    record.fail("\"text\" must end with the word that is to be guessed");
  document.requests.push_back(
      {one_word ? "" : text.substr(0, space), " " + (one_word ? text : text.substr(space + 1))});
}

void read_greedy(const TaskRecord& record, TaskDocument& document) {
  const std::vector<std::string> choices = record.texts("choices");
  if (choices.size() != 1 || choices[0].empty())
    record.fail("\"choices\" must have one text: what the model is to continue the context with");
  document.requests.push_back({record.text("context"), " " + choices[0]});
}

void read_mmlu(const TaskRecord& record, TaskDocument& document) {
  static const std::vector<std::string> kLetters = {"A", "B", "C", "D"};
  if (record.has("subject")) document.subject = record.text("subject");
  if (document.subject.empty()) record.fail("\"subject\" is missing");
  std::vector<std::string> choices;
  if (record.has("choices")) {
    choices = record.texts("choices");
  } else {
    for (const char* key : {"choice0", "choice1", "choice2", "choice3"})
      choices.push_back(record.text(key));
  }
  if (choices.size() != kLetters.size()) record.fail("there must be four choices");
  std::string subject = document.subject;
  std::ranges::replace(subject, '_', ' ');
  std::string prompt = "The following are multiple choice questions (with answers) about " +
                       subject + ".\n\n" + std::string(strip(record.text("question")));
  for (std::size_t i = 0; i < choices.size(); ++i) prompt += "\n" + kLetters[i] + ". " + choices[i];
  set_choices(document, record, prompt + "\nAnswer:", kLetters,
              label_of(record, "answer", kLetters));
}

const std::vector<TaskKind>& kinds() {
  using enum Metric;
  static const std::vector<TaskKind> kKinds = {
      {"mmlu", kSubjects, read_mmlu, {"mmlu/test", "mmlu/data/test", "mmlu.jsonl"}},
      {"lambada_openai",
       kGreedy,
       read_lambada,
       {"lambada_openai/lambada_test.jsonl", "lambada_test.jsonl", "lambada_openai.jsonl"}},
      {"hellaswag",
       kNormalizedChoices,
       read_hellaswag,
       {"hellaswag/hellaswag_val.jsonl", "hellaswag_val.jsonl", "hellaswag.jsonl"}},
      {"winogrande",
       kChoices,
       read_winogrande,
       {"winogrande/winogrande_dev.jsonl", "winogrande/dev.jsonl", "winogrande.jsonl"}},
      {"piqa",
       kNormalizedChoices,
       read_piqa,
       {"piqa/valid.jsonl", "piqa/dev.jsonl", "physicaliqa-train-dev/dev.jsonl", "piqa.jsonl"}},
      {"truthfulqa_mc1",
       kChoices,
       read_truthfulqa,
       {"truthfulqa/v0/mc_task.json", "truthfulqa/mc_task.json", "truthfulqa.jsonl"}},
      {"openbookqa",
       kNormalizedChoices,
       read_openbookqa,
       {"openbookqa/openbookqa_test.jsonl", "openbookqa/test.jsonl",
        "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl", "openbookqa.jsonl"}},
      {"boolq", kChoices, read_boolq, {"boolq/val.jsonl", "BoolQ/val.jsonl", "boolq.jsonl"}},
      {"rte", kChoices, read_rte, {"rte/val.jsonl", "rte/dev.tsv", "RTE/dev.tsv", "rte.jsonl"}},
      {"arc_easy",
       kNormalizedChoices,
       read_arc,
       {"arc/ARC-Easy-Test.jsonl", "ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl",
        "arc_easy.jsonl"}},
      {"arc_challenge",
       kNormalizedChoices,
       read_arc,
       {"arc/ARC-Challenge-Test.jsonl", "ARC-V1-Feb2018-2/ARC-Challenge/ARC-Challenge-Test.jsonl",
        "arc_challenge.jsonl"}},
      {"wikitext",
       kPages,
       nullptr,
       {"wikitext2/wiki.test.raw", "wikitext-2-raw/wiki.test.raw", "wiki.test.raw"}},
      {"choices", kNormalizedChoices, read_choices, {}},
      {"greedy", kGreedy, read_greedy, {}},
  };
  return kKinds;
}

const TaskKind& kind_named(const std::string& name) {
  const auto found = std::ranges::find(kinds(), name, &TaskKind::name);
  require(found != kinds().end(), "there is no such task");
  return *found;
}

// Labels that were published beside the questions, one a line: "valid.jsonl" and "valid-labels.lst".
fs::path labels_beside(const fs::path& file) {
  return file.parent_path() / (file.stem().string() + "-labels.lst");
}

void add_labels(std::vector<TaskRecord>& records, const fs::path& file, const std::string& key) {
  const fs::path labels = labels_beside(file);
  if (records.front().has(key) || !fs::is_regular_file(labels)) return;
  LineReader reader(labels);
  std::string line;
  std::size_t count = 0;
  while (reader.next(line)) {
    if (strip(line).empty()) continue;
    if (count < records.size()) records[count].fields[key] = strip(line);
    ++count;
  }
  if (count != records.size()) {
    throw InputError(labels.string() + ": " + std::to_string(count) + " labels for " +
                     std::to_string(records.size()) + " documents of " + file.string());
  }
}

void append_documents(const TaskKind& kind, std::vector<TaskRecord> records,
                      const std::string& subject, int limit, std::vector<TaskDocument>& documents) {
  if (limit > 0 && records.size() > static_cast<std::size_t>(limit))
    records.resize(static_cast<std::size_t>(limit));
  for (const TaskRecord& record : records) {
    TaskDocument document;
    document.where = record.where;
    document.subject = subject;
    kind.read(record, document);
    documents.push_back(std::move(document));
  }
}

const std::string kSubjectEnding = "_test.csv";

std::vector<fs::path> subject_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with(kSubjectEnding)) continue;
    if (utf8_prefix(name) != name.size())
      throw InputError(printable_line(entry.path().string()) + ": its name is not UTF-8");
    files.push_back(entry.path());
  }
  if (files.empty())
    throw InputError(folder.string() + ": there is no file named SUBJECT" + kSubjectEnding);
  std::ranges::sort(files);
  return files;
}

std::vector<TaskDocument> read_subjects(const TaskKind& kind, const TaskOptions& options) {
  static const std::vector<std::string> kColumns = {"question", "choice0", "choice1",
                                                    "choice2",  "choice3", "answer"};
  std::vector<TaskDocument> documents;
  for (const fs::path& file : subject_files(options.file)) {
    std::string subject = file.filename().string();
    subject.resize(subject.size() - kSubjectEnding.size());
    append_documents(kind, read_task_file(file, kColumns), subject, options.limit, documents);
  }
  return documents;
}

std::vector<TaskDocument> read_pages(const TaskOptions& options) {
  std::vector<std::string> pages;
  const std::string ending = options.file.extension().string();
  if (ending == ".jsonl" || ending == ".json") {
    for (const TaskRecord& record : read_task_file(options.file))
      pages.push_back(record.text("page"));
  } else {
    const std::string text = read_text_file(options.file);
    if (utf8_prefix(text) != text.size())
      throw InputError(options.file.string() + ": is not UTF-8");
    pages = wikitext_pages(text);
  }
  if (pages.empty()) throw InputError(options.file.string() + ": there is no text in it");
  if (options.limit > 0 && pages.size() > static_cast<std::size_t>(options.limit))
    pages.resize(static_cast<std::size_t>(options.limit));
  std::vector<TaskDocument> documents;
  for (std::size_t i = 0; i < pages.size(); ++i) {
    TaskDocument document;
    document.where = options.file.string() + ": page " + std::to_string(i + 1);
    document.words = count_white_space(pages[i]) + 1;  // as re.split(r"\s+", page) counts
    document.bytes = pages[i].size();
    document.page = detokenized_wikitext(std::move(pages[i]));
    documents.push_back(std::move(document));
  }
  return documents;
}

// Mean of zeros and ones, and the standard error that lm-eval gives it.
struct Mean {
  double mean = 0, standard_error = 0;
};

Mean mean_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  Mean result;
  for (const double value : values) result.mean += value;
  result.mean /= n;
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  if (n > 1) result.standard_error = std::sqrt(squares / (n - 1) / n);
  return result;
}

void put_mean(Json& figures, const std::string& name, const Mean& mean) {
  figures[name] = number_or_null<Json>(mean.mean);
  figures[name + "_stderr"] = number_or_null<Json>(mean.standard_error);
}

// The first of the largest, like numpy's argmax; none where a value is not a number: nothing was chosen.
std::optional<std::size_t> largest(const std::vector<double>& values) {
  if (std::ranges::any_of(values, [](double value) { return std::isnan(value); })) return {};
  return static_cast<std::size_t>(std::ranges::max_element(values) - values.begin());
}

// 1 or 0; NaN where nothing was chosen, so that no mean is made of it.
double score_of(std::optional<std::size_t> choice, std::size_t gold) {
  if (!choice) return std::numeric_limits<double>::quiet_NaN();
  return *choice == gold ? 1 : 0;
}

Json to_json(std::optional<std::size_t> choice) { return choice ? Json(*choice) : Json(); }

void score_choices(Metric metric, Protocol protocol, std::span<const TaskDocument> documents,
                   const std::vector<std::vector<double>>& sums, TaskResult& result) {
  std::vector<double> right, right_by_length;
  std::map<std::string, std::vector<double>> subjects;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const TaskDocument& document = documents[d];
    std::vector<double> by_length;
    for (std::size_t c = 0; c < sums[d].size(); ++c)
      by_length.push_back(sums[d][c] / static_cast<double>(document.characters[c]));
    const std::optional<std::size_t> choice = largest(sums[d]);
    const std::optional<std::size_t> choice_by_length = largest(by_length);
    right.push_back(score_of(choice, document.gold));
    right_by_length.push_back(score_of(choice_by_length, document.gold));
    if (!document.subject.empty()) subjects[document.subject].push_back(right.back());
    Json& answer = result.answers[d];
    answer["gold"] = document.gold;
    answer["choice"] = to_json(choice);
    if (metric == Metric::kNormalizedChoices) answer["choice_norm"] = to_json(choice_by_length);
  }
  const Mean by_size = mean_of(right);
  if (metric != Metric::kSubjects) {
    put_mean(result.figures, "acc", by_size);
    if (metric == Metric::kNormalizedChoices)
      put_mean(result.figures, "acc_norm", mean_of(right_by_length));
    return;
  }
  // Of the subjects' means, which are independent.
  Mean by_subject;
  double variance = 0;
  Json each = Json::object();
  for (const auto& [subject, values] : subjects) {
    const Mean mean = mean_of(values);
    by_subject.mean += mean.mean / static_cast<double>(subjects.size());
    variance += mean.standard_error * mean.standard_error;
    each[subject] = number_or_null<Json>(mean.mean);
  }
  by_subject.standard_error = std::sqrt(variance) / static_cast<double>(subjects.size());
  put_mean(result.figures, "acc", protocol == Protocol::kPaper ? by_subject : by_size);
  result.figures["acc_by_subject"] = number_or_null<Json>(by_subject.mean);
  result.figures["acc_by_size"] = number_or_null<Json>(by_size.mean);
  result.figures["subjects"] = std::move(each);
}

}  // namespace

std::string_view name_of(Protocol protocol) {
  return protocol == Protocol::kPaper ? "paper" : "lm-eval";
}

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const TaskKind& kind : kinds()) all.push_back(kind.name);
    return all;
  }();
  return names;
}

const std::vector<std::string>& task_files(const std::string& task) {
  return kind_named(task).files;
}

bool wants_greedy(const std::string& task) { return kind_named(task).metric == Metric::kGreedy; }

std::vector<fs::path> task_sources(const TaskOptions& options) {
  if (fs::is_directory(options.file)) return subject_files(options.file);
  std::vector<fs::path> files = {options.file};
  const fs::path labels = labels_beside(options.file);
  if (fs::is_regular_file(labels)) files.push_back(labels);
  return files;
}

std::vector<TaskDocument> read_task(const TaskOptions& options) {
  const TaskKind& kind = kind_named(options.task);
  if (kind.metric == Metric::kPages) return read_pages(options);
  if (kind.metric == Metric::kSubjects && fs::is_directory(options.file))
    return read_subjects(kind, options);
  std::vector<TaskRecord> records = read_task_file(options.file);
  if (options.task == "piqa") add_labels(records, options.file, "label");
  if (options.task == "winogrande") add_labels(records, options.file, "answer");
  std::vector<TaskDocument> documents;
  append_documents(kind, std::move(records), "", options.limit, documents);
  return documents;
}

TaskResult score_task(const TaskOptions& options, Protocol protocol,
                      std::span<const TaskDocument> documents,
                      const std::vector<std::vector<std::size_t>>& results,
                      std::span<const LogLikelihood> log_likelihoods) {
  const Metric metric = kind_named(options.task).metric;
  TaskResult result;
  std::vector<std::vector<double>> sums(documents.size());
  for (std::size_t d = 0; d < documents.size(); ++d) {
    Json answer = {{"document", d}};
    Json list = Json::array();
    for (const std::size_t r : results[d]) {
      sums[d].push_back(log_likelihoods[r].sum);
      list.push_back(number_or_null<Json>(log_likelihoods[r].sum));
    }
    answer["log_likelihoods"] = std::move(list);
    result.answers.push_back(std::move(answer));
  }

  if (metric == Metric::kGreedy) {
    std::vector<double> right;
    double sum = 0;
    for (std::size_t d = 0; d < documents.size(); ++d) {
      const bool greedy = log_likelihoods[results[d][0]].greedy;
      const bool finite = !std::isnan(sums[d][0]);
      right.push_back(!finite ? std::numeric_limits<double>::quiet_NaN() : greedy ? 1 : 0);
      result.answers[d]["greedy"] = finite ? Json(greedy) : Json();
      sum += sums[d][0];
    }
    put_mean(result.figures, "acc", mean_of(right));
    result.figures["perplexity"] =
        number_or_null<Json>(std::exp(-sum / static_cast<double>(documents.size())));
  } else if (metric == Metric::kPages) {
    double sum = 0, words = 0, bytes = 0;
    for (std::size_t d = 0; d < documents.size(); ++d) {
      for (const double window : sums[d]) sum += window;
      words += static_cast<double>(documents[d].words);
      bytes += static_cast<double>(documents[d].bytes);
    }
    result.figures["word_perplexity"] = number_or_null<Json>(std::exp(-sum / words));
    result.figures["byte_perplexity"] = number_or_null<Json>(std::exp(-sum / bytes));
    result.figures["bits_per_byte"] = number_or_null<Json>(-sum / bytes / std::log(2.0));
  } else {
    score_choices(metric, protocol, documents, sums, result);
  }
  result.figures["documents"] = documents.size();
  return result;
}

}  // namespace roundhouse
