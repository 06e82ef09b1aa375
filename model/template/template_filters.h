// Filters of the template language: what stands behind a | in {{ text | trim }}. Those of Jinja, and some that tasks need more
// (docs/tasks.md). On a list, filters of texts change each of them.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "model/template/template_value.h"

namespace roundhouse {

struct TemplateFilter {
  std::string_view name;
  std::size_t least, most;  // arguments
  // Throws TemplateError saying what is wrong with a value or an argument, without where.
  TemplateValue (*apply)(const TemplateValue& value, std::span<const TemplateValue> arguments);
  std::array<std::string_view, 2> parameters =
      {};  // names of arguments, for those that are given by name
  bool takes_undefined = false;
  bool is_default = false;  // a single argument is for what is not there, and looked at then alone
};

// nullptr: there is none of that name.
const TemplateFilter* find_template_filter(std::string_view name);
std::vector<std::string> template_filter_names();

// A template's texts become no longer, however it goes about it.
inline constexpr std::size_t kMostTemplateBytes = std::size_t{64} << 20;
// Bytes of all texts in a value, and one for each value.
std::size_t bytes_of(const TemplateValue& value);

// `change` of a text, or of each text of a list.
template <class Change>
TemplateValue each_text(const TemplateValue& value, const Change& change) {
  if (value.is_string()) return change(value.get_ref<const std::string&>());
  if (!value.is_array()) throw TemplateError("must be a text or a list of texts");
  TemplateValue list = TemplateValue::array();
  for (const TemplateValue& each : value) {
    if (!each.is_string()) throw TemplateError("must be a list of texts");
    list.push_back(change(each.get_ref<const std::string&>()));
  }
  return list;
}

}  // namespace roundhouse
