#include "model/template/template_filters.h"

#include <algorithm>
#include <cctype>
#include <limits>

#include <fmt/format.h>

#include "model/template/white_space.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using Value = TemplateValue;
using Arguments = std::span<const Value>;

const std::string& text_of(const Value& value, const char* what) {
  if (!value.is_string()) throw TemplateError(std::string(what) + " must be a text");
  return value.get_ref<const std::string&>();
}

// What is searched for.
const std::string& mark_of(const Value& value) {
  const std::string& mark = text_of(value, "what is looked for");
  if (mark.empty()) throw TemplateError("what is looked for is empty");
  return mark;
}

const Value& list_of_texts(const Value& value) {
  const bool texts = value.is_array() &&
                     std::ranges::all_of(value, [](const Value& each) { return each.is_string(); });
  if (!texts) throw TemplateError("must be a list of texts");
  return value;
}

Value trim(const Value& value, Arguments) {
  return each_text(value, [](const std::string& text) { return std::string(strip(text)); });
}
Value capitalize(const Value& value, Arguments) {
  return each_text(value, [](const std::string& text) { return capitalized(text); });
}
Value upper(const Value& value, Arguments) {
  return each_text(value, [](const std::string& text) { return in_case(text, std::toupper); });
}
Value lower(const Value& value, Arguments) {
  return each_text(value, [](const std::string& text) { return in_case(text, std::tolower); });
}

Value replace(const Value& value, Arguments arguments) {
  const std::string& from = mark_of(arguments[0]);
  const std::string& to = text_of(arguments[1], "what is put in its place");
  // Before it is made: a short text can become one that no memory holds.
  return each_text(value, [&](const std::string& text) {
    std::size_t found = 0;
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += from.size())
      ++found;
    if (text.size() + found * to.size() > kMostTemplateBytes)
      throw TemplateError("becomes too long");
    return replaced(text, from, to);
  });
}

// Without what stands between `open` and `close`, and without these, wherever both are on one line.
Value remove(const Value& value, Arguments arguments) {
  const std::string& open = mark_of(arguments[0]);
  const std::string& close = mark_of(arguments[1]);
  return each_text(value, [&](const std::string& text) {
    std::string result;
    std::size_t copied = 0;
    for (std::size_t begin = 0; (begin = text.find(open, begin)) != std::string::npos;) {
      const std::size_t line_end = std::min(text.find('\n', begin + open.size()), text.size());
      const std::size_t end =
          std::string_view(text).substr(0, line_end).find(close, begin + open.size());
      if (end == std::string::npos) {
        begin += open.size();
        continue;
      }
      result.append(text, copied, begin - copied);
      begin = copied = end + close.size();
    }
    return result.append(text, copied);
  });
}

// As Python's partition() and rpartition() divide a text.
Value before(const Value& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) { return text.substr(0, text.find(mark)); });
}
Value after(const Value& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.find(mark);
    return at == std::string::npos ? std::string() : text.substr(at + mark.size());
  });
}
Value before_last(const Value& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.rfind(mark);
    return at == std::string::npos ? std::string() : text.substr(0, at);
  });
}
Value after_last(const Value& value, Arguments arguments) {
  const std::string& mark = mark_of(arguments[0]);
  return each_text(value, [&](const std::string& text) {
    const std::size_t at = text.rfind(mark);
    return at == std::string::npos ? text : text.substr(at + mark.size());
  });
}

Value join(const Value& value, Arguments arguments) {
  const std::string between = arguments.empty() ? "" : as_text(arguments[0]);
  const Value list = list_of(value);
  if (bytes_of(list) + list.size() * between.size() > kMostTemplateBytes)
    throw TemplateError("becomes too long");
  std::string joined;
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (i > 0) joined += between;
    joined += as_text(list[i]);
  }
  return joined;
}

// In front of each text of a list its own of another list, which is as long.
Value prepend(const Value& value, Arguments arguments) {
  const Value& list = list_of_texts(value);
  const Value& fronts = list_of_texts(arguments[0]);
  if (list.size() != fronts.size()) {
    throw TemplateError(
        fmt::format("there must be {} of them, not {}", fronts.size(), list.size()));
  }
  Value result = Value::array();
  for (std::size_t i = 0; i < list.size(); ++i) {
    result.push_back(fronts[i].get_ref<const std::string&>() +
                     list[i].get_ref<const std::string&>());
  }
  return result;
}

// A, B, C, ..., as many as a list has.
Value letters(const Value& value, Arguments) {
  if (!value.is_array() || value.size() > 26) throw TemplateError("must be a list of 26 at most");
  Value result = Value::array();
  for (std::size_t i = 0; i < value.size(); ++i)
    result.push_back(std::string(1, static_cast<char>('A' + i)));
  return result;
}

Value only(const Value& value, Arguments) {
  if (!value.is_array() || value.size() != 1 || !value[0].is_string())
    throw TemplateError("must have one text");
  return value[0];
}

const Value& object_of(const Value& value) {
  if (!value.is_object()) throw TemplateError("must be an object");
  return value;
}
Value keys(const Value& value, Arguments) { return list_of(object_of(value)); }
Value values(const Value& value, Arguments) {
  Value result = Value::array();
  for (const Value& each : object_of(value)) result.push_back(each);
  return result;
}
Value items(const Value& value, Arguments) { return items_of(value); }

Value length(const Value& value, Arguments) { return length_of(value); }
Value string(const Value& value, Arguments) { return as_text(value); }
Value list(const Value& value, Arguments) { return list_of(value); }
Value first(const Value& value, Arguments) { return element(list_of(value), 0); }
Value last(const Value& value, Arguments) { return element(list_of(value), -1); }

Value or_default(const Value& value, Arguments arguments) {
  const bool falsy = arguments.size() > 1 && is_true(arguments[1]);
  if (!value.is_discarded() && !(falsy && !is_true(value))) return value;
  return arguments.empty() ? Value("") : arguments[0];
}

// Elements of which an attribute is true, or is what the test says of it.
Value selected(const Value& value, Arguments arguments, bool wanted) {
  Value result = Value::array();
  for (const Value& each : list_of(value)) {
    const Value attribute = element(each, arguments[0]);
    const bool holds = arguments.size() == 1
                           ? is_true(attribute)
                           : test(text_of(arguments[1], "a test"), attribute,
                                  TemplateArguments(arguments.begin() + 2, arguments.end()));
    if (holds == wanted) result.push_back(each);
  }
  return result;
}
Value selectattr(const Value& value, Arguments arguments) {
  return selected(value, arguments, true);
}
Value rejectattr(const Value& value, Arguments arguments) {
  return selected(value, arguments, false);
}

constexpr std::size_t kAny = std::numeric_limits<std::size_t>::max();
constexpr TemplateFilter kFilters[] = {
    {"default", 0, 2, or_default, {"default_value", "boolean"}, true, true},
    {"d", 0, 2, or_default, {"default_value", "boolean"}, true, true},
    {"trim", 0, 0, trim},
    {"capitalize", 0, 0, capitalize},
    {"upper", 0, 0, upper},
    {"lower", 0, 0, lower},
    {"replace", 2, 2, replace, {"old", "new"}},
    {"remove", 2, 2, remove},
    {"before", 1, 1, before},
    {"after", 1, 1, after},
    {"before_last", 1, 1, before_last},
    {"after_last", 1, 1, after_last},
    {"join", 0, 1, join, {"d"}},
    {"prepend", 1, 1, prepend},
    {"letters", 0, 0, letters},
    {"only", 0, 0, only},
    {"keys", 0, 0, keys},
    {"values", 0, 0, values},
    {"items", 0, 0, items},
    {"length", 0, 0, length},
    {"count", 0, 0, length},
    {"string", 0, 0, string, {}, true},
    {"list", 0, 0, list},
    {"first", 0, 0, first},
    {"last", 0, 0, last},
    {"selectattr", 1, kAny, selectattr},
    {"rejectattr", 1, kAny, rejectattr},
};

}  // namespace

const TemplateFilter* find_template_filter(std::string_view name) {
  const auto* found = std::ranges::find(kFilters, name, &TemplateFilter::name);
  return found == std::end(kFilters) ? nullptr : found;
}

std::vector<std::string> template_filter_names() {
  std::vector<std::string> all;
  for (const TemplateFilter& filter : kFilters) all.emplace_back(filter.name);
  return all;
}

std::size_t bytes_of(const Value& value) {
  std::size_t bytes = 1;
  if (value.is_string()) bytes += value.get_ref<const std::string&>().size();
  if (value.is_structured()) {
    for (const Value& each : value) bytes += bytes_of(each);
  }
  return bytes;
}

}  // namespace roundhouse
