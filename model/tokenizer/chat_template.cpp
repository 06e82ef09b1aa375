#include "model/tokenizer/chat_template.h"

#include <algorithm>
#include <cstddef>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "model/tokenizer/template_value.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using Kind = TemplateExpression::Kind;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 24;
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 24;
constexpr int kMaxSteps = 1'000'000;
constexpr std::int64_t kMaxRange = 100'000;

// Goes through a tree with the values of its names.
class Renderer {
 public:
  explicit Renderer(const json& variables) {
    scopes_.emplace_back();
    for (const auto& [name, value] : variables.items()) scopes_.back()[name] = value;
  }

  std::string run(const std::vector<TemplateNode>& nodes) {
    render(nodes);
    return std::move(text_);
  }

 private:
  using Scope = std::map<std::string, json>;

  void step() {
    if (++steps_ > kMaxSteps) throw TemplateError("takes too many steps");
  }

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
    json value = value_of(*node.expression);
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
    json list = filter("list", value_of(*node.expression), {}, {});
    if (node.condition) {
      json chosen = json::array();
      for (const json& each : list) {
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
      json& facts = scopes_.back()["loop"];
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
  void bind(const std::vector<std::string>& names, const json& value) {
    step();
    if (names.size() == 1) {
      scopes_.back()[names[0]] = value;
      return;
    }
    if (!value.is_array() || value.size() != names.size())
      throw TemplateError("a loop over several names");
    for (std::size_t i = 0; i < names.size(); ++i) scopes_.back()[names[i]] = value[i];
  }

  // Where a variable or a part of it is kept, so that conversations are not copied for each look at them; nullptr: nowhere.
  const json* place_of(const TemplateExpression& e) {
    if (e.kind == Kind::kName) {
      for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
        if (const auto found = scope->find(e.name); found != scope->end()) return &found->second;
      }
    }
    if (e.kind != Kind::kAttribute && e.kind != Kind::kIndex) return nullptr;
    const json* whole = place_of(*e.operands[0]);
    if (whole == nullptr) return nullptr;
    const json index = e.kind == Kind::kIndex ? value_of(*e.operands[1]) : json(e.name);
    if (whole->is_object() && index.is_string()) {
      const auto found = whole->find(index.get<std::string>());
      return found != whole->end() ? &*found : nullptr;
    }
    if (!whole->is_array() || !index.is_number_integer()) return nullptr;
    const auto size = static_cast<std::int64_t>(whole->size());
    const std::int64_t at = index.get<std::int64_t>() + (index < 0 ? size : 0);
    return at >= 0 && at < size ? &(*whole)[static_cast<std::size_t>(at)] : nullptr;
  }

  json value_of(const TemplateExpression& e) {
    step();
    const auto operand = [&](std::size_t i) { return value_of(*e.operands[i]); };
    switch (e.kind) {
      case Kind::kValue:
        return e.value;
      case Kind::kName: {
        const json* place = place_of(e);
        return place != nullptr ? *place : undefined_value();
      }
      case Kind::kAttribute: {
        if (const json* place = place_of(e)) return *place;
        return element(operand(0), e.name);
      }
      case Kind::kIndex: {
        if (const json* place = place_of(e)) return *place;
        return element(operand(0), operand(1));
      }
      case Kind::kSlice: {
        const auto bound = [&](std::size_t i) { return e.operands[i] ? operand(i) : json(); };
        return slice(operand(0), bound(1), bound(2), bound(3));
      }
      case Kind::kCall:
        return call(e);
      case Kind::kFilter:
        return filter(e.name, operand(0), arguments_of(e), named_of(e));
      case Kind::kTest:
        return test(e.name, operand(0), arguments_of(e));
      case Kind::kNot:
        return !is_true(operand(0));
      case Kind::kNegative:
        return combine("-", 0, operand(0));
      case Kind::kBinary:
        return binary(e);
      case Kind::kChoice:
        if (is_true(operand(1))) return operand(0);
        return e.operands[2] ? operand(2) : undefined_value();
      case Kind::kList: {
        json list = json::array();
        for (std::size_t i = 0; i < e.operands.size(); ++i) list.push_back(operand(i));
        return list;
      }
      case Kind::kMap: {
        json map = json::object();
        for (const auto& [key, value] : e.named) map[key] = value_of(*value);
        return map;
      }
    }
    throw TemplateError("an expression of no kind");
  }

  json binary(const TemplateExpression& e) {
    json left = value_of(*e.operands[0]);
    if (e.name == "and") return is_true(left) ? value_of(*e.operands[1]) : left;
    if (e.name == "or") return is_true(left) ? left : value_of(*e.operands[1]);
    json both = combine(e.name, left, value_of(*e.operands[1]));
    if (both.is_string()) check_size(both.get_ref<const std::string&>().size());
    return both;
  }

  TemplateArguments arguments_of(const TemplateExpression& e) {
    TemplateArguments arguments;
    for (std::size_t i = 1; i < e.operands.size(); ++i)
      arguments.push_back(value_of(*e.operands[i]));
    return arguments;
  }
  NamedTemplateArguments named_of(const TemplateExpression& e) {
    NamedTemplateArguments named;
    for (const auto& [key, value] : e.named) named.emplace_back(key, value_of(*value));
    return named;
  }

  json call(const TemplateExpression& e) {
    const TemplateExpression& callee = *e.operands[0];
    const TemplateArguments arguments = arguments_of(e);
    if (callee.kind == Kind::kAttribute)
      return call_method(value_of(*callee.operands[0]), callee.name, arguments);
    if (callee.kind != Kind::kName) throw TemplateError("a call that is not supported");
    if (callee.name == "namespace") {
      json object = json::object();
      for (const auto& [key, value] : named_of(e)) object[key] = value;
      return object;
    }
    if (callee.name == "raise_exception" && arguments.size() == 1)
      throw TemplateError("says: " + as_text(arguments[0]));
    if (callee.name == "range" && !arguments.empty() && arguments.size() < 3) {
      json list = json::array();
      const json begin = arguments.size() == 2 ? arguments[0] : json(0), end = arguments.back();
      if (!begin.is_number_integer() || !end.is_number_integer() ||
          end.get<std::int64_t>() - begin.get<std::int64_t>() > kMaxRange)
        throw TemplateError("a range that is too long");
      for (auto i = begin.get<std::int64_t>(); i < end.get<std::int64_t>(); ++i) list.push_back(i);
      return list;
    }
    throw TemplateError("the function " + callee.name + " is not supported");
  }

  std::vector<Scope> scopes_;
  std::string text_;
  int steps_ = 0;
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
  json variables = variables_;
  variables["messages"] = messages;
  try {
    return Renderer(variables).run(nodes_);
  } catch (const TemplateError& error) {
    throw InputError("the template in " + where_ + " " + error.what());
  }
}

}  // namespace roundhouse
