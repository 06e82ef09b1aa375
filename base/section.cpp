#include "base/section.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestKey = 200;  // that a message shows whole

}  // namespace

std::string unknown_key(const std::string& key, const std::vector<std::string>& known) {
  const std::vector<std::string> nearest = nearest_words(key, known, 1);
  return "unknown key " + in_quotes(key) +
         (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)");
}

std::string override_of(const std::string& key) { return "--set " + printable(key, kLongestKey); }

void fail(const std::string& where, const std::string& key, const std::string& what) {
  const bool named = key.empty() || where == override_of(key);
  throw InputError(where + ": " + (named ? "" : printable(key, kLongestKey) + ": ") + what);
}

bool is_whole_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

Section::Section(const YamlNode* node, std::string path, std::string where)
    : node_(node), path_(std::move(path)), where_(std::move(where)) {
  if (node_ == nullptr || node_->kind == YamlNode::Kind::kNull) {
    node_ = nullptr;
  } else if (node_->kind != YamlNode::Kind::kMap) {
    fail(where_, path_, "must be a group of keys and values");
  }
}

Section Section::section(const std::string& key) {
  const YamlNode* node = find(key);
  return {node, path_of(key), node != nullptr ? node->where : where_};
}

std::vector<std::string> Section::keys() const {
  return given() ? node_->keys : std::vector<std::string>();
}

const std::vector<YamlNode>* Section::sequence(const std::string& key) {
  const YamlNode* node = find(key);
  if (node == nullptr) return nullptr;
  if (node->kind != YamlNode::Kind::kSequence) {
    fail(node->where, path_of(key), "must be a list, as in [a, b]");
  }
  return &node->items;
}

std::string Section::text(const std::string& key, const std::string& fallback) {
  const YamlNode* node = find(key);
  return node != nullptr ? scalar(*node, path_of(key)) : fallback;
}

std::string Section::scalar(const YamlNode& node, const std::string& path) {
  if (node.kind == YamlNode::Kind::kNull) fail(node.where, path, "has no value");
  if (node.kind != YamlNode::Kind::kScalar) fail(node.where, path, "must be one value");
  if (node.text.empty()) fail(node.where, path, "must not be empty");
  if (node.text.find('\0') != std::string::npos) fail(node.where, path, "has a NUL in it");
  return node.text;
}

std::string Section::required_text(const std::string& key) {
  if (find(key) == nullptr) fail(where_, path_of(key), "is missing");
  return text(key, "");
}

std::string Section::one_of(const std::string& key, const std::string& fallback,
                            const std::vector<std::string>& choices) {
  const std::string value = text(key, fallback);
  if (std::ranges::find(choices, value) == choices.end()) {
    fail(where(key), path_of(key),
         fmt::format("must be one of {}, not {}", fmt::join(choices, ", "), in_quotes(value)));
  }
  return value;
}

bool Section::boolean(const std::string& key, bool fallback) {
  const YamlNode* node = find(key);
  if (node == nullptr) return fallback;
  const nlohmann::json value = to_json(*node);
  if (!value.is_boolean()) fail(node->where, path_of(key), "must be true or false");
  return value.get<bool>();
}

double Section::number(const std::string& key, double fallback, double least, double most) {
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

fs::path Section::file(const std::string& key, InputFiles files) {
  const fs::path file = required_text(key);
  if (files == InputFiles::kMayBeGone) return file;
  std::error_code error;
  const fs::file_status status = fs::status(file, error);
  if (!fs::is_regular_file(status)) {
    fail(where(key), path_of(key),
         (fs::exists(status) ? "is not a file: " : "there is no file ") + in_quotes(file.string()));
  }
  return file;
}

void Section::finish() const {
  if (node_ == nullptr) return;
  for (std::size_t i = 0; i < node_->keys.size(); ++i) {
    const std::string& key = node_->keys[i];
    if (std::ranges::find(known_, key) != known_.end()) continue;
    fail(node_->items[i].where, path_, unknown_key(key, known_));
  }
}

std::string Section::where(const std::string& key) const {
  const YamlNode* node = node_ != nullptr ? node_->find(key) : nullptr;
  return node != nullptr ? node->where : where_;
}

const YamlNode* Section::find(const std::string& key) {
  if (std::ranges::find(known_, key) == known_.end()) known_.push_back(key);
  return node_ != nullptr ? node_->find(key) : nullptr;
}

}  // namespace roundhouse
