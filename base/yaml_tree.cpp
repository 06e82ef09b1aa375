#include "base/yaml_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "base/json_file.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxNodes = 20000;
constexpr std::size_t kMaxDepth = 32;
// The scanner holds a whole line of brackets before it hands out the first.
constexpr std::size_t kMaxLineBytes = 64 << 10;

// Builds the tree from the parser's events; throws from inside the parser, which so never goes
// deeper than kMaxDepth.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const std::function<std::string(int)>& where) : where_(where) {}

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (documents_++ > 0) fail(mark, "a second YAML document starts here");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(begin(mark, "", anchor, YamlNode::Kind::kNull), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(mark, "anchors and aliases (& and *) are not supported");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    const bool quoted = tag == "!";  // how the parser marks quotes
    YamlNode node = begin(mark, quoted ? "" : tag, anchor, YamlNode::Kind::kScalar);
    node.text = value;
    node.quoted = quoted;
    if (!quoted && (value.empty() || value == "~" || value == "null")) {
      node.kind = YamlNode::Kind::kNull;
    }
    add(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(begin(mark, tag, anchor, YamlNode::Kind::kSequence), mark);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(begin(mark, tag, anchor, YamlNode::Kind::kMap), mark);
  }
  void OnMapEnd() override { close(); }

  YamlNode take_root() { return std::move(root_); }

 private:
  struct Open {
    YamlNode node;
    YAML::Mark mark;
    std::optional<std::string> key;  // of a map: read, its value not yet
    std::string key_where;
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& what) const {
    throw InputError(where_(mark.line + 1) + ": " + what);
  }

  YamlNode begin(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                 YamlNode::Kind kind) {
    if (anchor != 0) fail(mark, "anchors and aliases (& and *) are not supported");
    if (!tag.empty() && tag != "?") fail(mark, "the tag " + in_quotes(tag) + " is not supported");
    if (++nodes_ > kMaxNodes) {
      fail(mark, fmt::format("more than {} values: this is no configuration", kMaxNodes));
    }
    YamlNode node;
    node.kind = kind;
    node.where = where_(mark.line + 1);
    return node;
  }

  void open(YamlNode node, const YAML::Mark& mark) {
    if (open_.size() >= kMaxDepth) {
      fail(mark, fmt::format("nested more than {} levels deep", kMaxDepth));
    }
    open_.push_back({std::move(node), mark, std::nullopt, ""});
  }

  void close() {
    Open top = std::move(open_.back());
    open_.pop_back();
    add(std::move(top.node), top.mark);
  }

  void add(YamlNode node, const YAML::Mark& mark) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kSequence) {
      parent.node.items.push_back(std::move(node));
    } else if (!parent.key) {
      if (node.kind != YamlNode::Kind::kScalar) fail(mark, "a key must be a word");
      if (const YamlNode* first = parent.node.find(node.text)) {
        fail(mark, "duplicate key " + in_quotes(node.text) + " (first at " + first->where + ")");
      }
      parent.key = node.text;
      parent.key_where = node.where;
    } else {
      node.where = parent.key_where;
      parent.node.keys.push_back(*std::exchange(parent.key, std::nullopt));
      parent.node.items.push_back(std::move(node));
    }
  }

  const std::function<std::string(int)>& where_;
  std::vector<Open> open_;
  YamlNode root_;
  std::size_t nodes_ = 0;
  int documents_ = 0;
};

bool is_utf8(const std::string& line) {
  try {
    nlohmann::json(line).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

void check_text(const std::string& text, const std::function<std::string(int)>& where) {
  if (text.size() > kMostYamlBytes) {
    throw InputError(fmt::format("{}: longer than {} bytes: this is no configuration", where(0),
                                 kMostYamlBytes));
  }
  const bool byte_order_mark = text.starts_with("\xEF\xBB\xBF");
  std::istringstream lines(byte_order_mark ? text.substr(3) : text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const bool control = std::ranges::any_of(line, [](char c) {
      const auto byte = static_cast<unsigned char>(c);
      return (byte < 0x20 && c != '\t' && c != '\r') || byte == 0x7f;
    });
    if (control || !is_utf8(line)) {
      throw InputError(where(number) + ": not UTF-8 text: this is no configuration");
    }
    if (line.size() > kMaxLineBytes) {
      throw InputError(fmt::format("{}: a line of more than {} bytes: this is no configuration",
                                   where(number), kMaxLineBytes));
    }
  }
}

template <class T>
std::optional<T> whole_number(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end) return std::nullopt;
  return value;
}

nlohmann::json scalar_to_json(const std::string& text) {
  if (text == "true") return true;
  if (text == "false") return false;
  if (const auto value = whole_number<std::int64_t>(text)) return *value;
  if (const auto value = whole_number<std::uint64_t>(text)) return *value;
  // from_chars also reads "inf" and "nan", which are words here.
  const bool numeric = text.find_first_not_of("0123456789.+-eE") == std::string::npos;
  if (numeric) {
    if (const auto value = whole_number<double>(text)) return *value;
  }
  return text;
}

}  // namespace

const YamlNode* YamlNode::find(const std::string& key) const {
  const auto found = std::ranges::find(keys, key);
  return found == keys.end() ? nullptr : &items[found - keys.begin()];
}

YamlNode parse_yaml(const std::string& text, const std::function<std::string(int line)>& where) {
  check_text(text, where);
  TreeBuilder builder(where);
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    throw InputError(where(error.mark.is_null() ? 0 : error.mark.line + 1) +
                     ": not valid YAML: " + error.msg);
  }
  return builder.take_root();
}

nlohmann::json to_json(const YamlNode& node) {
  nlohmann::json value;
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      break;
    case YamlNode::Kind::kScalar:
      value = node.quoted ? nlohmann::json(node.text) : scalar_to_json(node.text);
      break;
    case YamlNode::Kind::kSequence:
      value = nlohmann::json::array();
      for (const YamlNode& item : node.items) value.push_back(to_json(item));
      break;
    case YamlNode::Kind::kMap:
      value = nlohmann::json::object();
      for (std::size_t i = 0; i < node.keys.size(); ++i)
        value[node.keys[i]] = to_json(node.items[i]);
      break;
  }
  return value;
}

}  // namespace roundhouse
