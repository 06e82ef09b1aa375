// Texts of task files with {{expressions}} in them, a small part of Jinja2: docs/tasks.md has the language.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/evaluate/text_filters.h"

namespace roundhouse {

class TextTemplate {
 public:
  using Json = nlohmann::ordered_json;
  // Nothing: there is no such field.
  using Value = std::optional<Json>;
  // What a name stands for.
  using Lookup = std::function<Value(const std::string& name)>;

  struct Expression;
  struct Filtering {
    const TextFilter* filter = nullptr;  // nullptr: default
    std::vector<Expression> arguments;
  };
  using Chain = std::vector<Filtering>;

  // `chains`: filters by other names. Throws InputError saying what is wrong and where in the text.
  explicit TextTemplate(std::string_view text, const std::map<std::string, Chain>& chains = {});
  static Chain parse_chain(std::string_view text);  // "trim | replace("a", "b")"

  // A text that is one expression and nothing else keeps its type. Throws InputError naming the field and what is wrong with it.
  Value evaluate(const Lookup& names) const;
  std::string name() const;  // of the field that it is, in quotes, or "a text"

 private:
  std::vector<Expression> parts_;  // texts are expressions, too
};

struct TextTemplate::Expression {
  std::vector<std::string> path;  // a field, and where in it
  std::vector<Expression> items;  // of a list
  Json constant;                  // where neither
  bool is_list = false;
  Chain filters;
};

}  // namespace roundhouse
