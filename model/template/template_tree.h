// A template in Jinja's syntax, read into a tree: what chat templates and the texts of tasks are written in.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

struct TemplateExpression {
  enum class Kind {
    kValue,      // value
    kName,       // a variable
    kAttribute,  // operands[0].name
    kIndex,      // operands[0][operands[1]]
    kSlice,      // operands[0][operands[1]:operands[2]:operands[3]]; null: not given
    kCall,       // operands[0](the others, named)
    kFilter,     // operands[0] | name(the others, named)
    kTest,       // operands[0] is name(the others)
    kNot,
    kNegative,
    kBinary,  // name: "+", "in", "and", ..
    kChoice,  // operands[0] if operands[1] else operands[2], which may be null
    kList,
    kMap,  // named
  };
  Kind kind = Kind::kValue;
  std::string name;
  nlohmann::ordered_json value;
  std::vector<std::unique_ptr<TemplateExpression>> operands;
  std::vector<std::pair<std::string, std::unique_ptr<TemplateExpression>>> named;
};

struct TemplateNode {
  enum class Kind {
    kText,    // text
    kOutput,  // expression
    kSet,     // names = expression; names[0].attribute = expression
    kFor,     // for names in expression if condition: body
    kIf,      // if expression: body; else: otherwise
  };
  Kind kind = Kind::kText;
  std::string text = {}, attribute = {};
  std::vector<std::string> names = {};
  std::unique_ptr<TemplateExpression> expression = {}, condition = {};
  std::vector<TemplateNode> body = {}, otherwise = {};
};

// White space as Hugging Face has it: trim_blocks and lstrip_blocks. Throws InputError "WHERE:LINE: .." for what is not read:
// macros, includes, filters of blocks, floating-point numbers; and for more than 1 MiB or nesting deeper than 64.
std::vector<TemplateNode> parse_template(std::string_view source, const std::string& where);
// Of a text with {{ expressions }}, which is kept to its last newline: texts and outputs alone. Throws InputError saying what is wrong.
std::vector<TemplateNode> parse_expressions(std::string_view source);

}  // namespace roundhouse
