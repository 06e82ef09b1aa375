#include "pipeline/config/sections.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

void check_task_name(const std::string& name, const std::string& where, const std::string& path,
                     std::set<std::string>& names) {
  if (!is_plain_name(name))
    fail(where, path, "must be letters, digits, '-', '.' or '_', not " + in_quotes(name));
  if (name == kAverage)
    fail(where, path,
         "reports call the mean of all tasks " + in_quotes(name) + ": take another name");
  if (!names.insert(name).second) {
    fail(where, path,
         "a second task named " + in_quotes(name) + ": give one of them another `name:`");
  }
}

// What makes a task of a file: the name of one, or the path of a YAML file.
std::string task_template(Section& entry, const std::string& fallback, InputFiles files) {
  std::string task = entry.text("template", fallback);
  const bool known = std::ranges::find(task_names(), task) != task_names().end();
  std::error_code error;
  if (!known && !is_task_file(task)) {
    fail(entry.where("template"), entry.path_of("template"),
         fmt::format("must be one of {}, or a file that ends with .yaml, not {}",
                     fmt::join(task_names(), ", "), in_quotes(task)));
  }
  if (!known && files == InputFiles::kMustExist && !fs::is_regular_file(task, error)) {
    fail(entry.where("template"), entry.path_of("template"), "there is no file " + in_quotes(task));
  }
  return task;
}

// A task's file: that which is named, within `folder` if it is not there otherwise, or one of those that the task is known by.
fs::path task_file(Section& entry, const std::string& task, const fs::path& folder,
                   InputFiles files) {
  const std::string given = entry.text("file", "");
  // A run's config names the file, and may be read when no template is there any more.
  if (files == InputFiles::kMayBeGone && !given.empty()) return given;
  const TaskTemplate made_by = read_task_template(task);
  std::vector<fs::path> candidates;
  if (!given.empty()) {
    candidates.emplace_back(given);
    if (!folder.empty() && candidates[0].is_relative()) candidates.push_back(folder / given);
  } else {
    if (folder.empty() || made_by.files.empty()) {
      fail(entry.where("file"), entry.path_of("file"),
           "is missing" + std::string(made_by.files.empty()
                                          ? ""
                                          : ", and so is the folder evaluate.task_data"));
    }
    for (const std::string& known : made_by.files) candidates.push_back(folder / known);
  }
  if (files == InputFiles::kMayBeGone) return candidates[0];
  std::error_code error;
  for (const fs::path& file : candidates) {
    if (fs::is_regular_file(file, error) ||
        (reads_folders(made_by) && fs::is_directory(file, error)))
      return file;
  }
  std::vector<std::string> tried;
  for (const fs::path& file : candidates) tried.push_back(file.string());
  fail(entry.where("file"), entry.path_of("file"), "there is no file " + in_quotes(tried));
}

// Each task is a name, the path of a template, or {name, file, template, limit}.
void read_tasks(Section& section, InputFiles files, std::set<std::string>& names,
                Evaluations& evaluations) {
  const std::string lm_eval(name_of(Protocol::kLmEval)), paper(name_of(Protocol::kPaper));
  const bool as_papers = section.one_of("protocol", lm_eval, {lm_eval, paper}) == paper;
  evaluations.protocol = as_papers ? Protocol::kPaper : Protocol::kLmEval;
  const fs::path folder = section.text("task_data", "");
  const int limit = section.integer("limit", 0, 0, kMaxSamples);
  const std::vector<YamlNode>* nodes = section.sequence("tasks");
  if (nodes == nullptr) return;
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    YamlNode node = (*nodes)[i];
    const std::string path = fmt::format("{}[{}]", section.path_of("tasks"), i);
    const bool name_only = node.kind == YamlNode::Kind::kScalar;
    if (name_only) {
      YamlNode entry;
      entry.kind = YamlNode::Kind::kMap;
      entry.where = node.where;
      entry.keys = {"name"};
      entry.items = {node};
      if (is_task_file(node.text)) {
        entry.keys.emplace_back("template");
        entry.items[0].text = fs::path(node.text).stem().string();
        entry.items.push_back(node);
      }
      node = std::move(entry);
    }
    Section entry(&node, path, node.where);
    TaskOptions task;
    task.name = entry.required_text("name");
    check_task_name(task.name, entry.where("name"), entry.path_of("name"), names);
    const bool known = std::ranges::find(task_names(), task.name) != task_names().end();
    if (!known && name_only && !is_task_file((*nodes)[i].text)) {
      const std::vector<std::string> nearest = nearest_words(task.name, task_names(), 1);
      fail(entry.where("name"), entry.path_of("name"),
           "no task is called " + in_quotes(task.name) +
               (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)") +
               "; one of your own needs `file:`, or is the path of a .yaml file");
    }
    task.task = task_template(entry, known ? task.name : "choices", files);
    task.file = task_file(entry, task.task, folder, files);
    task.limit = entry.integer("limit", limit, 0, kMaxSamples);
    entry.finish();
    evaluations.tasks.push_back(std::move(task));
  }
}

}  // namespace

void read_evaluate(Section section, InputFiles files, RunConfig& config) {
  std::set<std::string> names;
  config.evaluate_original = section.boolean("original", config.evaluate_original);
  if (const std::vector<YamlNode>* tasks = section.sequence("perplexity")) {
    for (std::size_t i = 0; i < tasks->size(); ++i) {
      const YamlNode& node = (*tasks)[i];
      Section entry(&node, fmt::format("{}[{}]", section.path_of("perplexity"), i), node.where);
      PerplexityTask task;
      task.text = entry.file("text", files);
      task.name = entry.text("name", task.text.stem().string());
      check_task_name(task.name, entry.where("name"), entry.path_of("name"), names);
      task.window = entry.integer("window", task.window, 2, kMaxTokens);
      task.limit = entry.integer("limit", task.limit, 0, kMaxSamples);
      task.rows = entry.boolean("rows", task.rows);
      entry.finish();
      config.evaluations.perplexity.push_back(std::move(task));
    }
  }
  config.evaluations.kl = section.boolean("kl", config.evaluations.kl);
  if (config.evaluations.kl && config.evaluations.perplexity.empty()) {
    fail(section.where("kl"), section.path_of("kl"),
         "is measured on the texts of evaluate.perplexity, and there are none");
  }
  read_tasks(section, files, names, config.evaluations);
  section.finish();
}

}  // namespace roundhouse
