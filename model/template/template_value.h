// What a template computes with: JSON whose maps keep their order, with Python's notions of what is true, what a text does and what there is at an index.
// json::value_t::discarded stands for what is not defined.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

// Of a template, without its name.
class TemplateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

using TemplateValue = nlohmann::ordered_json;
using TemplateArguments = std::vector<TemplateValue>;

TemplateValue undefined_value();
bool is_true(const TemplateValue& value);
std::string as_text(const TemplateValue& value);  // as {{ }} writes it
// "+", "~", "in", "==", "<", ..: all but "and" and "or".
TemplateValue combine(const std::string& sign, const TemplateValue& left,
                      const TemplateValue& right);
// value[index], value.name; undefined if there is none.
TemplateValue element(const TemplateValue& value, const TemplateValue& index);
TemplateValue slice(const TemplateValue& value, const TemplateValue& begin,
                    const TemplateValue& end, const TemplateValue& step);
// The list that a slice or a loop is of: characters of a text, keys of a map.
TemplateValue list_of(const TemplateValue& value);
TemplateValue items_of(const TemplateValue& map);  // [key, value] each
std::int64_t length_of(const TemplateValue& value);
bool test(const std::string& name, const TemplateValue& value, const TemplateArguments& arguments);
// value.name(arguments), of texts and maps.
TemplateValue call_method(const TemplateValue& value, const std::string& name,
                          const TemplateArguments& arguments);

// All occurrences, from left to right. Precondition: `from` is not empty.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);
std::string in_case(std::string text, int (*to)(int));  // of ASCII alone; refuses others

}  // namespace roundhouse
