#include "stages/evaluate/task_template.h"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/section.h"

namespace roundhouse {

std::string_view embedded_task(std::string_view file);  // configs/tasks/FILE

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMostNames = 100;

// What the named tasks were when results began to name them, by hash. One that is changed is known by its hash from then on, so that
// nothing that was measured before is taken for it; its line here can go.
const std::map<std::string, std::string>& first_contents() {
  static const std::map<std::string, std::string> kContents = {
      {"mmlu", "cdb9e94582e04411ab7bbc5af5ea119a"},
      {"lambada_openai", "4a461a1b49a90407d20915fc965ceee8"},
      {"hellaswag", "045f42265bd7ecee1824fc5c10a7474e"},
      {"winogrande", "2dc67963e08b2c1af229b6bed6cb5766"},
      {"piqa", "c48ef60cd279518a1911fada4158bec2"},
      {"truthfulqa_mc1", "a2edea957efe8982ec5b176a43c81c6e"},
      {"openbookqa", "924f79565e010102decf6353b70b2375"},
      {"boolq", "d90c4e5a5814ea5ff90ff4b67f5dc2ac"},
      {"rte", "1aafb0aecbf3999e8f61259a14e18493"},
      {"arc_easy", "f8108d139b7b2ea5c5ccae9ca1a63967"},
      {"arc_challenge", "f8108d139b7b2ea5c5ccae9ca1a63967"},
      {"wikitext", "3277c4b47b42e175f813497e11329f2b"},
      {"choices", "f717f5b65397f583c730b5682d8f92ab"},
      {"greedy", "20f6f902d14c4f91ae85b5947b344e09"},
  };
  return kContents;
}

YamlNode parse(const std::string& yaml, const std::string& file) {
  YamlNode root = parse_yaml(
      yaml, [&](int line) { return line > 0 ? fmt::format("{}:{}", file, line) : file; });
  if (root.kind != YamlNode::Kind::kMap)
    throw InputError(file + ": must be a group of keys and values, as docs/tasks.md has them");
  const YamlNode* included = root.find("include");
  if (included == nullptr) return root;
  // Keys that it does not have itself, of a named task.
  const std::string task = Section::scalar(*included, "include");
  if (std::ranges::find(task_names(), task) == task_names().end())
    fail(included->where, "include", "no task is called " + in_quotes(task));
  const std::string name = task + ".yaml";
  YamlNode other = parse(std::string(embedded_task(name)), name);
  for (std::size_t i = 0; i < other.keys.size(); ++i) {
    if (root.find(other.keys[i]) != nullptr) continue;
    root.keys.push_back(other.keys[i]);
    root.items.push_back(std::move(other.items[i]));
  }
  const auto at = std::ranges::find(root.keys, "include") - root.keys.begin();
  root.keys.erase(root.keys.begin() + at);
  root.items.erase(root.items.begin() + at);
  return root;
}

Json content_of(const YamlNode& node) {
  Json content;
  if (node.kind == YamlNode::Kind::kScalar) content = node.text;
  if (node.kind == YamlNode::Kind::kSequence) {
    content = Json::array();
    for (const YamlNode& item : node.items) content.push_back(content_of(item));
  }
  if (node.kind == YamlNode::Kind::kMap) {
    content = Json::object();
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      content[node.keys[i]] = content_of(node.items[i]);
  }
  return content;
}

// Keys of the first level may stand in any order.
std::string hash_of(const YamlNode& root) {
  std::map<std::string, Json> sorted;
  for (std::size_t i = 0; i < root.keys.size(); ++i) {
    if (root.keys[i] != "files") sorted[root.keys[i]] = content_of(root.items[i]);
  }
  return xxh3_hex(Json(sorted).dump());
}

class Reader {
 public:
  Reader(const YamlNode& root, const std::string& file) : top_(&root, "", file) {}

  TaskTemplate read() {
    TaskTemplate made;
    made.files = words(top_, "files");
    made.wikitext_pages =
        top_.one_of("reader", "documents", {"documents", "wikitext"}) == "wikitext";
    made.labels_beside = top_.text("labels_beside", "");
    read_filters();
    read_names(made);
    const std::string metric =
        top_.one_of("metric", "acc_norm", {"acc", "acc_norm", "greedy", "perplexity"});
    made.metric = metric == "acc"        ? TaskMetric::kAccuracy
                  : metric == "acc_norm" ? TaskMetric::kNormalizedAccuracy
                  : metric == "greedy"   ? TaskMetric::kGreedy
                                         : TaskMetric::kPerplexity;
    read_subjects(made);
    const bool is_choice =
        made.metric == TaskMetric::kAccuracy || made.metric == TaskMetric::kNormalizedAccuracy;
    if (made.metric == TaskMetric::kPerplexity) {
      made.choices = {text("page")};
      if (top_.node("counted") != nullptr) made.counted = text("counted");
    } else {
      const bool many = is_choice && top_.node("contexts") != nullptr;
      made.contexts = many ? texts("contexts") : std::vector<TaskText>{text("context")};
      if (!is_choice || many) {
        made.choices = {text("continuation")};
      } else {
        const YamlNode* node = top_.node("choices");
        const bool list = node != nullptr && node->kind == YamlNode::Kind::kSequence;
        made.choices = list ? texts("choices") : std::vector<TaskText>{text("choices")};
      }
      const YamlNode* delimiter = top_.node("delimiter");
      const bool none = delimiter != nullptr && delimiter->quoted && delimiter->text.empty();
      made.delimiter = none ? "" : top_.text("delimiter", " ");
    }
    if (is_choice) read_gold(made);
    top_.finish();
    return made;
  }

 private:
  static std::vector<std::string> words(Section& section, const std::string& key) {
    std::vector<std::string> made;
    const std::vector<YamlNode>* nodes = section.sequence(key);
    if (nodes == nullptr) return made;
    for (const YamlNode& node : *nodes) made.push_back(Section::scalar(node, section.path_of(key)));
    return made;
  }

  TaskText parsed(const YamlNode& node, const std::string& path) const {
    const std::string text = Section::scalar(node, path);
    try {
      return {node.where + ": " + path, TextTemplate(text, chains_)};
    } catch (const InputError& error) {
      fail(node.where, path, error.what());
    }
  }

  TaskText text(const std::string& key) {
    const YamlNode* node = top_.node(key);
    if (node == nullptr) fail(top_.where(key), key, "is missing");
    return parsed(*node, key);
  }

  std::vector<TaskText> texts(const std::string& key) {
    const std::vector<YamlNode>* nodes = top_.sequence(key);
    std::vector<TaskText> made;
    for (std::size_t i = 0; i < nodes->size(); ++i)
      made.push_back(parsed((*nodes)[i], fmt::format("{}[{}]", key, i)));
    if (made.size() < 2) fail(top_.where(key), key, "must be a list of two or more texts");
    return made;
  }

  void read_filters() {
    Section section = top_.section("filters");
    for (const std::string& name : section.keys()) {
      const std::string chain = section.required_text(name);
      if (is_text_filter(name))
        fail(section.where(name), section.path_of(name), "is a filter already: take another name");
      try {
        TextTemplate::check_chain(chain);
      } catch (const InputError& error) {
        fail(section.where(name), section.path_of(name), error.what());
      }
      chains_[name] = chain;
    }
  }

  void read_names(TaskTemplate& made) {
    Section section = top_.section("let");
    for (const std::string& name : section.keys())
      made.names.emplace_back(name, parsed(*section.node(name), section.path_of(name)));
    if (made.names.size() > kMostNames) {
      fail(top_.where("let"), "let", fmt::format("has more than {} names", kMostNames));
    }
  }

  void read_subjects(TaskTemplate& made) {
    Section section = top_.section("subjects");
    if (!section.given()) return;
    TaskTemplate::Subjects& subjects = made.subjects.emplace();
    subjects.field = section.required_text("field");
    subjects.ending = section.text("ending", "");
    subjects.columns = words(section, "columns");
    if (made.metric != TaskMetric::kAccuracy)
      fail(top_.where("metric"), "metric", "must be acc where there are subjects");
    Section mean = section.section("mean");
    for (const Protocol protocol : {Protocol::kLmEval, Protocol::kPaper}) {
      const std::string of =
          mean.one_of(std::string(name_of(protocol)), "documents", {"documents", "subjects"});
      made.mean_of_subjects[protocol] = of == "subjects";
    }
    mean.finish();
    section.finish();
  }

  void read_gold(TaskTemplate& made) {
    made.gold = text("gold");
    const YamlNode* node = top_.node("labels");
    if (node == nullptr) return;
    if (node->kind != YamlNode::Kind::kMap) {
      made.labels = text("labels");
      return;
    }
    Section section = top_.section("labels");
    for (const std::string& label : section.keys())
      made.answers[label] = section.integer<std::size_t>(label, 0, 0, kMostChoices - 1);
  }

  Section top_;
  TextTemplate::Chains chains_;  // they do not know each other
};

}  // namespace

std::string_view name_of(Protocol protocol) {
  return protocol == Protocol::kPaper ? "paper" : "lm-eval";
}

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> names = {
      "mmlu",           "lambada_openai", "hellaswag", "winogrande", "piqa",
      "truthfulqa_mc1", "openbookqa",     "boolq",     "rte",        "arc_easy",
      "arc_challenge",  "wikitext",       "choices",   "greedy"};
  return names;
}

bool is_task_file(const std::string& task) {
  return task.ends_with(".yaml") || task.ends_with(".yml");
}

TaskTemplate parse_task_template(const std::string& yaml, const std::string& file) {
  const YamlNode root = parse(yaml, file);
  TaskTemplate made = Reader(root, file).read();
  made.identity = hash_of(root);
  return made;
}

TaskTemplate read_task_template(const std::string& task) {
  if (is_task_file(task)) return parse_task_template(read_text_file(task, kMostYamlBytes), task);
  if (std::ranges::find(task_names(), task) == task_names().end())
    throw InputError("no task is called " + in_quotes(task));
  TaskTemplate made =
      parse_task_template(std::string(embedded_task(task + ".yaml")), task + ".yaml");
  const auto first = first_contents().find(task);
  if (first != first_contents().end() && first->second == made.identity) made.identity = task;
  return made;
}

}  // namespace roundhouse
