#include "pipeline/config/config.h"

#include <algorithm>
#include <charconv>
#include <concepts>
#include <set>
#include <string_view>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "pipeline/config/yaml_tree.h"
#include "pipeline/run/run_files.h"
#include "stages/export/engines.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// Far above anything useful, far below what overflows when multiplied.
constexpr int kMaxSamples = 1'000'000;
constexpr int kMaxTokens = 1 << 20;
constexpr int kMaxRanks = 100'000;
constexpr std::size_t kLongestKey = 200;  // that a message shows whole
constexpr std::int64_t kMaxCalibrationTokens = std::int64_t{1} << 31;

std::string unknown_key(const std::string& key, const std::vector<std::string>& known) {
  const std::vector<std::string> nearest = nearest_words(key, known, 1);
  return "unknown key " + in_quotes(key) +
         (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)");
}

std::string override_of(const std::string& key) { return "--set " + printable(key, kLongestKey); }

// "--set mesh.data" already names the key.
[[noreturn]] void fail(const std::string& where, const std::string& key, const std::string& what) {
  const bool named = key.empty() || where == override_of(key);
  throw InputError(where + ": " + (named ? "" : printable(key, kLongestKey) + ": ") + what);
}

bool is_whole_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// Whether the files that a configuration names have to be there.
enum class InputFiles { kMustExist, kMayBeGone };

// One map of the configuration. Every key must be asked for before finish().
class Section {
 public:
  // `node` may be nullptr: a section that is not given.
  Section(const YamlNode* node, std::string path, std::string where)
      : node_(node), path_(std::move(path)), where_(std::move(where)) {
    if (node_ == nullptr || node_->kind == YamlNode::Kind::kNull) {
      node_ = nullptr;
    } else if (node_->kind != YamlNode::Kind::kMap) {
      fail(where_, path_, "must be a group of keys and values");
    }
  }

  Section section(const std::string& key) {
    const YamlNode* node = find(key);
    return {node, path_of(key), node != nullptr ? node->where : where_};
  }

  // nullptr if it is not given.
  const std::vector<YamlNode>* sequence(const std::string& key) {
    const YamlNode* node = find(key);
    if (node == nullptr) return nullptr;
    if (node->kind != YamlNode::Kind::kSequence) {
      fail(node->where, path_of(key), "must be a list, as in [a, b]");
    }
    return &node->items;
  }

  std::string text(const std::string& key, const std::string& fallback) {
    const YamlNode* node = find(key);
    return node != nullptr ? scalar(*node, path_of(key)) : fallback;
  }

  static std::string scalar(const YamlNode& node, const std::string& path) {
    if (node.kind == YamlNode::Kind::kNull) fail(node.where, path, "has no value");
    if (node.kind != YamlNode::Kind::kScalar) fail(node.where, path, "must be one value");
    if (node.text.empty()) fail(node.where, path, "must not be empty");
    if (node.text.find('\0') != std::string::npos) fail(node.where, path, "has a NUL in it");
    return node.text;
  }

  std::string required_text(const std::string& key) {
    if (find(key) == nullptr) fail(where_, path_of(key), "is missing");
    return text(key, "");
  }

  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices) {
    const std::string value = text(key, fallback);
    if (std::ranges::find(choices, value) == choices.end()) {
      fail(where(key), path_of(key),
           fmt::format("must be one of {}, not {}", fmt::join(choices, ", "), in_quotes(value)));
    }
    return value;
  }

  bool boolean(const std::string& key, bool fallback) {
    const YamlNode* node = find(key);
    if (node == nullptr) return fallback;
    const nlohmann::json value = to_json(*node);
    if (!value.is_boolean()) fail(node->where, path_of(key), "must be true or false");
    return value.get<bool>();
  }

  template <std::integral T>
  T integer(const std::string& key, T fallback, T least, T most) {
    const YamlNode* node = find(key);
    if (node == nullptr) return fallback;
    const std::string word = scalar(*node, path_of(key));
    if (node->quoted || !is_whole_number(word)) {
      fail(node->where, path_of(key), "must be a whole number, not " + in_quotes(word));
    }
    T value{};
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc{} || stop != word.data() + word.size() || value < least ||
        value > most) {
      fail(node->where, path_of(key),
           fmt::format("must be from {} to {}, not {}", least, most, in_quotes(word)));
    }
    return value;
  }

  double number(const std::string& key, double fallback, double least, double most) {
    const YamlNode* node = find(key);
    if (node == nullptr) return fallback;
    const std::string word = scalar(*node, path_of(key));
    const nlohmann::json value = to_json(*node);
    if (!value.is_number()) {
      fail(node->where, path_of(key), "must be a number, not " + in_quotes(word));
    }
    if (!(value.get<double>() >= least && value.get<double>() <= most)) {
      fail(node->where, path_of(key),
           fmt::format("must be from {} to {}, not {}", least, most, in_quotes(word)));
    }
    return value.get<double>();
  }

  // The path of a regular file that is there, if it must be.
  fs::path file(const std::string& key, InputFiles files) {
    const fs::path file = required_text(key);
    if (files == InputFiles::kMayBeGone) return file;
    std::error_code error;
    const fs::file_status status = fs::status(file, error);
    if (!fs::is_regular_file(status)) {
      fail(where(key), path_of(key),
           (fs::exists(status) ? "is not a file: " : "there is no file ") +
               in_quotes(file.string()));
    }
    return file;
  }

  void finish() const {
    if (node_ == nullptr) return;
    for (std::size_t i = 0; i < node_->keys.size(); ++i) {
      const std::string& key = node_->keys[i];
      if (std::ranges::find(known_, key) != known_.end()) continue;
      fail(node_->items[i].where, path_, unknown_key(key, known_));
    }
  }

  std::string path_of(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
  }
  // Where the value stands, or would.
  std::string where(const std::string& key) const {
    const YamlNode* node = node_ != nullptr ? node_->find(key) : nullptr;
    return node != nullptr ? node->where : where_;
  }

 private:
  const YamlNode* find(const std::string& key) {
    if (std::ranges::find(known_, key) == known_.end()) known_.push_back(key);
    return node_ != nullptr ? node_->find(key) : nullptr;
  }

  const YamlNode* node_;
  std::string path_;
  std::string where_;
  std::vector<std::string> known_;
};

// Puts the value of "a.b=value" into the tree; "a.0.b" is the first entry of a list.
void apply_override(YamlNode& root, const std::string& assignment) {
  const std::size_t equals = assignment.find('=');
  const std::string key = assignment.substr(0, equals);
  if (equals == std::string::npos || key.empty()) {
    throw InputError("--set " + in_quotes(assignment) +
                     ": must be KEY=VALUE, as in calibration.samples=64");
  }
  const std::string where = override_of(key);
  YamlNode value = parse_yaml(assignment.substr(equals + 1), [&](int) { return where; });
  value.where = where;

  YamlNode* at = &root;
  for (std::size_t begin = 0; begin <= key.size();) {
    const std::size_t dot = std::min(key.find('.', begin), key.size());
    const std::string word = key.substr(begin, dot - begin);
    if (word.empty()) throw InputError(where + ": is not a key");
    const std::string before = key.substr(0, begin > 0 ? begin - 1 : 0);
    begin = dot + 1;
    if (at->kind == YamlNode::Kind::kSequence && is_whole_number(word)) {
      std::size_t index = 0;
      const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), index);
      if (error != std::errc{} || index >= at->items.size()) {
        throw InputError(where + ": " + in_quotes(before) + " has " +
                         std::to_string(at->items.size()) + " entries, the first of which is 0");
      }
      at = &at->items[index];
      continue;
    }
    if (at->kind == YamlNode::Kind::kNull) at->kind = YamlNode::Kind::kMap;
    if (at->kind != YamlNode::Kind::kMap) {
      throw InputError(where + ": " + in_quotes(before) + " is not a group of keys");
    }
    auto found = std::ranges::find(at->keys, word);
    if (found == at->keys.end()) {
      at->keys.push_back(word);
      at->items.emplace_back().where = where;
      found = at->keys.end() - 1;
    }
    at = &at->items[static_cast<std::size_t>(found - at->keys.begin())];
  }
  *at = std::move(value);
}

}  // namespace

bool is_plain_name(const std::string& name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
  return !name.empty() && name.size() <= 100 && name.front() != '.' &&
         name.find_first_not_of(kAllowed) == std::string::npos;
}

namespace {

Recipe read_recipe(const YamlNode& node, const std::string& path) {
  const nlohmann::json object = to_json(node);
  try {
    Recipe recipe = parse_recipe(object);
    recipe.where[""] = node.where + ": " + path;
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      recipe.where[node.keys[i]] = node.items[i].where + ": " + path + "." + node.keys[i];
    return recipe;
  } catch (const RecipeError& error) {
    const YamlNode* at = error.key.empty() ? nullptr : node.find(error.key);
    if (at == nullptr) {
      fail(node.where, error.key.empty() ? path : path + "." + error.key, error.what);
    }
    // If the recipe is right without this key, and does not have it when written out, then it is no
    // key at all.
    nlohmann::json rest = object;
    rest.erase(error.key);
    std::vector<std::string> known;
    try {
      const nlohmann::json written_out = resolved(parse_recipe(rest));
      for (const auto& [key, value] : written_out.items()) known.push_back(key);
    } catch (const RecipeError&) {
      known.clear();
    }
    if (!known.empty() && std::ranges::find(known, error.key) == known.end()) {
      fail(at->where, path, unknown_key(error.key, known));
    }
    fail(at->where, path + "." + error.key, error.what);
  }
}

std::vector<Recipe> read_recipes(Section& top) {
  const std::vector<YamlNode>* nodes = top.sequence("recipes");
  if (nodes == nullptr || nodes->empty()) {
    fail(top.where("recipes"), "recipes", "is missing: name at least one, as in [{method: rtn}]");
  }
  std::vector<Recipe> recipes;
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    const YamlNode& node = (*nodes)[i];
    const std::string path = fmt::format("recipes[{}]", i);
    Recipe recipe = read_recipe(node, path);
    if (!is_plain_name(recipe.name)) {
      fail(node.where, path + ".name",
           "must be 1 to 100 letters, digits, '-', '.' or '_', and not start with '.'");
    }
    if (recipe.name == kOriginal) {
      fail(node.where, path + ".name", "'original' is what results of the model itself are called");
    }
    if (std::ranges::find(recipes, recipe.name, &Recipe::name) != recipes.end()) {
      fail(node.where, path,
           "a second recipe named " + in_quotes(recipe.name) +
               ": give one of them a `name:` of its own");
    }
    recipes.push_back(std::move(recipe));
  }
  return recipes;
}

const std::vector<std::string> kDrawings = {"windows", "packed", "concatenated"};  // by Drawing

const std::string& name_of(Drawing drawing) { return kDrawings[static_cast<std::size_t>(drawing)]; }

void read_calibration(Section section, InputFiles files, RunConfig& config) {
  SampleOptions& options = config.calibration;
  const auto needy = std::ranges::find_if(
      config.recipes, [](const Recipe& recipe) { return recipe.needs.calibration(); });
  if (!section.text("text", "").empty()) {
    // A run that has begun knows the text by its content, and needs it no more once the windows are drawn.
    std::error_code ignored;
    const bool begun = fs::exists(config.run / "calibration.h5", ignored) ||
                       fs::exists(config.run / "gradients", ignored);
    options.text = section.file("text", begun ? InputFiles::kMayBeGone : files);
  } else if (needy != config.recipes.end()) {
    fail(section.where("text"), section.path_of("text"),
         "is missing: recipe " + in_quotes(needy->name) + " needs calibration text");
  }
  options.samples = section.integer("samples", options.samples, 1, kMaxSamples);
  options.sequence_length =
      section.integer("sequence_length", options.sequence_length, 1, kMaxTokens);
  options.seed = section.integer<std::uint64_t>("seed", options.seed, 0, ~std::uint64_t{0});
  const int fewest = std::min(options.shards, options.samples);
  options.shards = section.integer("shards", fewest, 1, kMaxSamples);
  if (options.shards > options.samples) {
    fail(section.where("shards"), section.path_of("shards"),
         fmt::format("{} shards cannot be cut from {} samples", options.shards, options.samples));
  }
  for (const Recipe& recipe : config.recipes) {
    if (!recipe.needs.gradients || recipe.needs.gradients->samples >= options.shards) continue;
    const auto at = recipe.where.find("gradients");
    throw InputError(
        fmt::format("{}: {} samples cannot be cut into the {} shards of calibration.shards",
                    at != recipe.where.end() ? at->second : recipe.name,
                    recipe.needs.gradients->samples, options.shards));
  }
  const std::string drawing = section.one_of("drawing", name_of(options.drawing), kDrawings);
  options.drawing = static_cast<Drawing>(std::ranges::find(kDrawings, drawing) - kDrawings.begin());
  if (std::int64_t{options.samples} * options.sequence_length > kMaxCalibrationTokens) {
    fail(section.where("samples"), section.path_of("samples"),
         fmt::format("{} samples of {} tokens are more than {} tokens", options.samples,
                     options.sequence_length, kMaxCalibrationTokens));
  }
  section.finish();
}

// A list of different words out of `known`.
std::vector<std::string> read_names(Section& section, const std::string& key,
                                    const std::vector<std::string>& known) {
  std::vector<std::string> names;
  if (const std::vector<YamlNode>* nodes = section.sequence(key)) {
    for (const YamlNode& node : *nodes) {
      const std::string name = Section::scalar(node, section.path_of(key));
      if (std::ranges::find(known, name) == known.end()) {
        fail(node.where, section.path_of(key),
             fmt::format("{} is not one of {}", in_quotes(name), fmt::join(known, ", ")));
      }
      if (std::ranges::find(names, name) != names.end()) {
        fail(node.where, section.path_of(key), in_quotes(name) + " stands there twice");
      }
      names.push_back(name);
    }
  }
  return names;
}

// A run that has begun keeps what it was started with, whatever is known of engines by now.
void check_engines(const Section& section, const RunConfig& config) {
  for (const Recipe& recipe : config.recipes) {
    for (const std::string& format : config.export_formats) {
      try {
        check_served(recipe, format, config.export_for);
      } catch (const InputError& error) {
        fail(section.where("for"), section.path_of("for"), error.what());
      }
    }
  }
}

void read_export(Section section, InputFiles files, RunConfig& config) {
  config.export_formats = read_names(section, "formats", export_formats());
  config.export_for = read_names(section, "for", engine_names());
  if (files == InputFiles::kMustExist) check_engines(section, config);
  const std::string type =
      section.one_of("dtype", "source", {"source", "float16", "bfloat16", "float32"});
  for (const DType each : {DType::kF16, DType::kBF16, DType::kF32}) {
    if (type == torch_name_of(each)) config.export_dtype = each;
  }
  config.export_shard_gib = section.number("shard_gib", config.export_shard_gib, 1e-6, 1e3);
  section.finish();
}

void check_task_name(const std::string& name, const std::string& where, const std::string& path,
                     std::set<std::string>& names) {
  if (!is_plain_name(name))
    fail(where, path, "must be letters, digits, '-', '.' or '_', not " + in_quotes(name));
  if (!names.insert(name).second) {
    fail(where, path,
         "a second task named " + in_quotes(name) + ": give one of them another `name:`");
  }
}

// A task's file: that which is named, within `folder` if it is not there otherwise, or one of those that the task is known by.
fs::path task_file(Section& entry, const TaskOptions& task, const fs::path& folder,
                   InputFiles files) {
  std::vector<fs::path> candidates;
  if (const std::string given = entry.text("file", ""); !given.empty()) {
    candidates.emplace_back(given);
    if (!folder.empty() && candidates[0].is_relative()) candidates.push_back(folder / given);
  } else {
    if (folder.empty() || task_files(task.task).empty()) {
      fail(entry.where("file"), entry.path_of("file"),
           "is missing" + std::string(task_files(task.task).empty()
                                          ? ""
                                          : ", and so is the folder evaluate.task_data"));
    }
    for (const std::string& known : task_files(task.task)) candidates.push_back(folder / known);
  }
  if (files == InputFiles::kMayBeGone) return candidates[0];
  std::error_code error;
  for (const fs::path& file : candidates) {
    if (fs::is_regular_file(file, error) || (task.task == "mmlu" && fs::is_directory(file, error)))
      return file;
  }
  std::vector<std::string> tried;
  for (const fs::path& file : candidates) tried.push_back(file.string());
  fail(entry.where("file"), entry.path_of("file"), "there is no file " + in_quotes(tried));
}

// Each task is a name, or {name, file, template, limit}.
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
      entry.items = {std::move(node)};
      node = std::move(entry);
    }
    Section entry(&node, path, node.where);
    TaskOptions task;
    task.name = entry.required_text("name");
    check_task_name(task.name, entry.where("name"), entry.path_of("name"), names);
    const bool known = std::ranges::find(task_names(), task.name) != task_names().end();
    if (!known && name_only) {
      const std::vector<std::string> nearest = nearest_words(task.name, task_names(), 1);
      fail(entry.where("name"), entry.path_of("name"),
           "no task is called " + in_quotes(task.name) +
               (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)") +
               "; one of your own needs `file:`");
    }
    task.task = entry.one_of("template", known ? task.name : "choices", task_names());
    task.file = task_file(entry, task, folder, files);
    task.limit = entry.integer("limit", limit, 0, kMaxSamples);
    entry.finish();
    evaluations.tasks.push_back(std::move(task));
  }
}

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

RunConfig read_tree(const YamlNode& root, const std::string& file, InputFiles files) {
  RunConfig config;
  Section top(&root, "", file);

  config.model = top.required_text("model");
  std::error_code ignored;
  if (files == InputFiles::kMustExist &&
      !fs::is_regular_file(config.model / "config.json", ignored)) {
    fail(top.where("model"), "model",
         "there is no file " + in_quotes((config.model / "config.json").string()));
  }
  config.run = top.required_text("run");
  if (fs::exists(config.run, ignored) && !fs::is_directory(config.run, ignored)) {
    fail(top.where("run"), "run", "is not a folder: " + in_quotes(config.run.string()));
  }
  if (fs::equivalent(config.run, config.model, ignored)) {
    fail(top.where("run"), "run", "is the folder of the model: choose another one");
  }
  config.recipes = read_recipes(top);
  read_calibration(top.section("calibration"), files, config);

  Section mesh = top.section("mesh");
  config.pipeline_ranks = mesh.integer("pipeline", config.pipeline_ranks, 0, kMaxRanks);
  config.data_ranks = mesh.integer("data", config.data_ranks, 0, kMaxRanks);
  mesh.finish();
  config.device = top.one_of("device", config.device, {"auto", "cpu", "cuda"});
  config.allow_other_device = top.boolean("allow_other_device", config.allow_other_device);
  config.threads = top.integer("threads", config.threads, 0, 4096);

  Section memory = top.section("memory");
  config.activation_memory_gib =
      memory.number("activations_gib", config.activation_memory_gib, 0, 1e6);
  config.saved_activation_gib =
      memory.number("saved_activations_gib", config.saved_activation_gib, 0, 1e6);
  config.scratch = memory.text("scratch", "");
  memory.finish();

  Section checkpoint = top.section("checkpoint");
  config.interruption_hours =
      checkpoint.number("interruption_hours", config.interruption_hours, 0, 1e6);
  checkpoint.finish();

  Section limits = top.section("limits");
  config.stall_seconds = limits.number("stall_seconds", config.stall_seconds, 1, 1e7);
  config.silence_seconds = limits.number("silence_seconds", config.silence_seconds, 2, 1e7);
  config.time_limit_minutes = limits.number("minutes", config.time_limit_minutes, 0, 1e7);
  limits.finish();

  read_export(top.section("export"), files, config);
  read_evaluate(top.section("evaluate"), files, config);
  top.finish();
  return config;
}

YamlNode read_file(const fs::path& file) {
  const std::string name = file.string();
  return parse_yaml(read_text_file(file, std::size_t{1} << 20),
                    [&](int line) { return line > 0 ? name + ":" + std::to_string(line) : name; });
}

// Text as YAML and JSON both write it in double quotes.
std::string yaml_text(const fs::path& path) {
  return nlohmann::json(path.string())
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

RunConfig read_config(const fs::path& file, const std::vector<std::string>& overrides) {
  YamlNode root = read_file(file);
  for (const std::string& assignment : overrides) apply_override(root, assignment);
  return read_tree(root, file.string(), InputFiles::kMustExist);
}

RunConfig read_config_of_plan(const fs::path& file, const std::vector<std::string>& overrides) {
  YamlNode root = read_file(file);
  for (const std::string& assignment : overrides) apply_override(root, assignment);
  return read_tree(root, file.string(), InputFiles::kMayBeGone);
}

RunConfig read_run_config(const fs::path& run) {
  const fs::path file = run / "config.yaml";
  RunConfig config = read_tree(read_file(file), file.string(), InputFiles::kMayBeGone);
  config.run = run;
  return config;
}

std::string to_yaml(const RunConfig& config) {
  std::string text;
  const auto line = [&text]<class... T>(fmt::format_string<T...> format, T&&... values) {
    text += fmt::format(format, std::forward<T>(values)...) + "\n";
  };
  line("model: {}", yaml_text(config.model));
  line("run: {}", yaml_text(config.run));
  line("calibration:");
  if (!config.calibration.text.empty()) line("  text: {}", yaml_text(config.calibration.text));
  line("  samples: {}", config.calibration.samples);
  line("  sequence_length: {}", config.calibration.sequence_length);
  line("  seed: {}", config.calibration.seed);
  line("  shards: {}", config.calibration.shards);
  line("  drawing: {}", name_of(config.calibration.drawing));
  line("recipes:");
  for (const Recipe& recipe : config.recipes) {
    std::vector<std::string> pairs = {"name: " + yaml_text(recipe.name),
                                      "method: " + recipe.method};
    const nlohmann::json written_out = resolved(recipe);
    for (const auto& [key, value] : written_out.items()) {
      if (key != "name" && key != "method") pairs.push_back(key + ": " + value.dump());
    }
    line("  - {{{}}}", fmt::join(pairs, ", "));
  }
  line("mesh: {{pipeline: {}, data: {}}}", config.pipeline_ranks, config.data_ranks);
  line("device: {}", config.device);
  if (config.allow_other_device) line("allow_other_device: true");
  line("threads: {}", config.threads);
  line("memory:");
  line("  activations_gib: {}", config.activation_memory_gib);
  line("  saved_activations_gib: {}", config.saved_activation_gib);
  if (!config.scratch.empty()) line("  scratch: {}", yaml_text(config.scratch));
  line("checkpoint: {{interruption_hours: {}}}", config.interruption_hours);
  line("limits: {{stall_seconds: {}, silence_seconds: {}, minutes: {}}}", config.stall_seconds,
       config.silence_seconds, config.time_limit_minutes);
  line("export:");
  line("  formats: [{}]", fmt::join(config.export_formats, ", "));
  line("  for: [{}]", fmt::join(config.export_for, ", "));
  line("  dtype: {}", config.export_dtype ? torch_name_of(*config.export_dtype) : "source");
  line("  shard_gib: {}", config.export_shard_gib);
  line("evaluate:");
  line("  original: {}", config.evaluate_original);
  line("  perplexity:{}", config.evaluations.perplexity.empty() ? " []" : "");
  for (const PerplexityTask& task : config.evaluations.perplexity) {
    line("    - {{name: {}, text: {}, window: {}, limit: {}, rows: {}}}", yaml_text(task.name),
         yaml_text(task.text), task.window, task.limit, task.rows);
  }
  line("  kl: {}", config.evaluations.kl);
  if (!config.evaluations.tasks.empty()) {
    line("  protocol: {}", name_of(config.evaluations.protocol));
    line("  tasks:");
    for (const TaskOptions& task : config.evaluations.tasks) {
      line("    - {{name: {}, template: {}, file: {}, limit: {}}}", yaml_text(task.name), task.task,
           yaml_text(task.file), task.limit);
    }
  }
  return text;
}

std::map<std::string, std::string> result_keys(const RunConfig& config) {
  std::map<std::string, std::string> keys;
  // Without calibration text no recipe uses any of this, and a text may be added later.
  if (!config.calibration.text.empty()) {
    keys["calibration.samples"] = std::to_string(config.calibration.samples);
    keys["calibration.sequence_length"] = std::to_string(config.calibration.sequence_length);
    keys["calibration.seed"] = std::to_string(config.calibration.seed);
    keys["calibration.shards"] = std::to_string(config.calibration.shards);
    keys["calibration.drawing"] = name_of(config.calibration.drawing);
  }
  for (const Recipe& recipe : config.recipes)
    keys["recipes." + recipe.name] = resolved(recipe).dump();
  return keys;
}

std::vector<std::string> differences(const std::map<std::string, std::string>& was,
                                     const std::map<std::string, std::string>& is) {
  std::vector<std::string> lines;
  for (const auto& [key, value] : is) {
    const auto before = was.find(key);
    if (before == was.end() || before->second == value) continue;
    lines.push_back(fmt::format("{}: was {}, is {}", key, before->second, value));
  }
  return lines;
}

ExportOptions export_options(const RunConfig& config, const std::string& format) {
  return {.format = format,
          .dtype = config.export_dtype,
          .max_shard_bytes = static_cast<std::int64_t>(config.export_shard_gib * 0x1p30)};
}

}  // namespace roundhouse
