#include "model/template/chat_template.h"

#include <algorithm>
#include <cstddef>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "model/template/template_evaluator.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using Value = TemplateValue;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 24;
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 24;

// Goes through a tree with the values of its names.
class Renderer final : public TemplateEvaluator {
 public:
  explicit Renderer(const Value& variables) {
    scopes_.emplace_back();
    for (const auto& [name, value] : variables.items()) scopes_.back()[name] = value;
  }

  std::string run(const std::vector<TemplateNode>& nodes) {
    render(nodes);
    return std::move(text_);
  }

 private:
  using Scope = std::map<std::string, Value>;

  void render(const std::vector<TemplateNode>& nodes) {
    for (const TemplateNode& node : nodes) {
      step();
      switch (node.kind) {
        case TemplateNode::Kind::kText:
          write(node.text);
          break;
        case TemplateNode::Kind::kOutput:
          write(as_text(value_of(*node.expression)));
          break;
        case TemplateNode::Kind::kSet:
          set(node);
          break;
        case TemplateNode::Kind::kFor:
          loop(node);
          break;
        case TemplateNode::Kind::kIf:
          render(is_true(value_of(*node.expression)) ? node.body : node.otherwise);
          break;
      }
    }
  }

  void write(const std::string& text) {
    check_size(text_.size() + text.size());
    text_ += text;
  }
  static void check_size(std::size_t bytes) {
    if (bytes > kMaxTextBytes) throw TemplateError("makes more than 16 MiB");
  }

  void set(const TemplateNode& node) {
    Value value = value_of(*node.expression);
    if (node.attribute.empty()) {
      scopes_.back()[node.names[0]] = std::move(value);
      return;
    }
    // An attribute of a namespace(), which is seen outside of a loop, too.
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      const auto found = scope->find(node.names[0]);
      if (found == scope->end() || !found->second.is_object()) continue;
      found->second[node.attribute] = std::move(value);
      return;
    }
    throw TemplateError(node.names[0] + " is no namespace");
  }

  void loop(const TemplateNode& node) {
    Value list = list_of(value_of(*node.expression));
    if (node.condition) {
      Value chosen = Value::array();
      for (const Value& each : list) {
        scopes_.emplace_back();
        bind(node.names, each);
        if (is_true(value_of(*node.condition))) chosen.push_back(each);
        scopes_.pop_back();
      }
      list = std::move(chosen);
    }
    for (std::size_t i = 0; i < list.size(); ++i) {
      scopes_.emplace_back();
      bind(node.names, list[i]);
      Value& facts = scopes_.back()["loop"];
      facts = {{"index0", i},
               {"index", i + 1},
               {"revindex", list.size() - i},
               {"revindex0", list.size() - i - 1},
               {"length", list.size()},
               {"first", i == 0},
               {"last", i + 1 == list.size()}};
      if (i > 0) facts["previtem"] = list[i - 1];
      if (i + 1 < list.size()) facts["nextitem"] = list[i + 1];
      render(node.body);
      scopes_.pop_back();
    }
  }
  void bind(const std::vector<std::string>& names, const Value& value) {
    step();
    if (names.size() == 1) {
      scopes_.back()[names[0]] = value;
      return;
    }
    if (!value.is_array() || value.size() != names.size())
      throw TemplateError("a loop over several names");
    for (std::size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = value[i];
  }

  const Value* variable(const std::string& name) override {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return &found->second;
    }
    return nullptr;
  }
  void check(const Value& value) override {
    if (value.is_string()) check_size(value.get_ref<const std::string&>().size());
  }

  std::vector<Scope> scopes_;
  std::string text_;
};

}  // namespace

ChatTemplate::ChatTemplate(const std::filesystem::path& model) {
  const std::filesystem::path file = model / "chat_template.jinja";
  const std::filesystem::path config = model / "tokenizer_config.json";
  const json object =
      std::filesystem::exists(config) ? read_json_file(config, kMaxFileBytes) : json();
  std::string source;
  if (std::filesystem::exists(file)) {
    where_ = file.string();
    source = read_text_file(file, kMaxFileBytes);
  } else {
    where_ = config.string() + ": chat_template";
    json given = object.is_object() ? object.value("chat_template", json()) : json();
    if (given.is_array()) {
      const auto is_default = [](const json& each) {
        return each.is_object() && each.value("name", json()) == "default";
      };
      const auto found = std::ranges::find_if(given, is_default);
      given = found != given.end() ? found->value("template", json()) : json();
    }
    if (!given.is_string()) {
      throw InputError(where_ +
                       ": there is none, and no chat_template.jinja: conversations cannot be "
                       "written down as this model's");
    }
    source = given.get<std::string>();
  }
  if (!is_utf8(source)) throw InputError(where_ + ": not UTF-8");
  nodes_ = parse_template(source, where_);
  variables_ = {{"add_generation_prompt", false}, {"tools", nullptr}, {"documents", nullptr}};
  for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token"}) {
    json token = object.is_object() ? object.value(key, json()) : json();
    if (token.is_object()) token = token.value("content", json());
    if (token.is_string()) variables_[key] = token;
  }
}

std::string ChatTemplate::render(const json& messages) const {
  Value variables = variables_;
  variables["messages"] = Value(messages);
  try {
    return Renderer(variables).run(nodes_);
  } catch (const TemplateError& error) {
    throw InputError("the template in " + where_ + " " + error.what());
  }
}

}  // namespace roundhouse
