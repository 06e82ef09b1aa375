#include "model/template/template_value.h"

#include <algorithm>
#include <cctype>
#include <limits>
#include <string_view>

#include "model/template/white_space.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using Value = TemplateValue;

[[noreturn]] void fail(const std::string& what) { throw TemplateError(what); }

std::string kind_of(const Value& value) {
  return value.is_discarded() ? "what is not defined"
                              : std::string("a value of type ") + value.type_name();
}

const std::string& text_of(const Value& value, const std::string& what) {
  if (!value.is_string()) fail(what + " of " + kind_of(value) + ", not of a text");
  return value.get_ref<const std::string&>();
}

std::int64_t integer_of(const Value& value) {
  if (!value.is_number_integer()) fail("an index that is " + kind_of(value));
  return value.get<std::int64_t>();
}

bool is_number(const std::string& text) {
  return !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == text.npos;
}

// The characters of a text, each a text.
std::vector<std::string> characters_of(const std::string& text) {
  std::vector<std::string> characters;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t bytes = code_point_at(text, i).bytes;
    characters.push_back(text.substr(i, bytes));
    i += bytes;
  }
  return characters;
}

bool is_in(const std::string& set, std::string_view character) {
  return set.find(character) != std::string::npos;
}

// The characters of `set` at one or both ends.
std::string stripped(const std::string& text, bool left, bool right, const std::string& set) {
  const std::vector<std::string> characters = characters_of(text);
  std::size_t begin = 0, end = characters.size();
  while (left && begin < end && is_in(set, characters[begin])) ++begin;
  while (right && begin < end && is_in(set, characters[end - 1])) --end;
  std::string result;
  for (std::size_t i = begin; i < end; ++i) result += characters[i];
  return result;
}

Value split(const std::string& text, const std::string& at) {
  if (at.empty()) fail("split at an empty text");
  Value parts = Value::array();
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = text.find(at, begin)) != std::string::npos;
       begin = end + at.size())
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

Value compared(const std::string& sign, const Value& left, const Value& right) {
  const bool both =
      (left.is_number() && right.is_number()) || (left.is_string() && right.is_string());
  if (!both) fail(sign + " of " + kind_of(left) + " and " + kind_of(right));
  if (sign == "<") return left < right;
  if (sign == ">") return right < left;
  return sign == "<=" ? left <= right : right <= left;
}

Value computed(const std::string& sign, const Value& left, const Value& right) {
  if (!left.is_number_integer() || !right.is_number_integer())
    fail(sign + " of " + kind_of(left) + " and " + kind_of(right));
  const auto a = left.get<std::int64_t>(), b = right.get<std::int64_t>();
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  if (std::max({a, b, -a, -b}) > kMost) fail("numbers that are too large");
  if (sign == "+") return a + b;
  if (sign == "-") return a - b;
  if (sign == "*") return a * b;
  if (sign != "%" && sign != "//") fail("division that may leave a rest");
  if (b == 0) fail("division by zero");
  const std::int64_t rest = ((a % b) + b) % b;  // of the divisor's sign, as in Python
  return sign == "%" ? rest : (a - rest) / b;
}

}  // namespace

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result;
  for (;;) {
    const std::size_t at = text.find(from);
    result += text.substr(0, at);
    if (at == std::string_view::npos) return result;
    result += to;
    text.remove_prefix(at + from.size());
  }
}

std::string in_case(std::string text, int (*to)(int)) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 128) fail("upper or lower case beyond ASCII");
    c = static_cast<char>(to(static_cast<unsigned char>(c)));
  }
  return text;
}

Value items_of(const Value& value) {
  if (!value.is_object()) fail("items of " + kind_of(value));
  Value items = Value::array();
  for (const auto& [key, each] : value.items()) items.push_back({key, each});
  return items;
}

std::int64_t length_of(const Value& value) {
  if (value.is_string())
    return static_cast<std::int64_t>(characters_of(value.get_ref<const std::string&>()).size());
  if (!value.is_array() && !value.is_object()) fail("length of " + kind_of(value));
  return static_cast<std::int64_t>(value.size());
}

Value list_of(const Value& value) {
  if (value.is_array()) return value;
  Value list = Value::array();
  if (value.is_string()) {
    for (const std::string& c : characters_of(value.get_ref<const std::string&>()))
      list.push_back(c);
  } else if (value.is_object()) {
    for (const auto& [key, each] : value.items()) list.push_back(key);
  } else {
    fail("a list is needed, not " + kind_of(value));
  }
  return list;
}

Value undefined_value() { return Value(Value::value_t::discarded); }

bool is_true(const Value& value) {
  if (value.is_null() || value.is_discarded()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  return value.is_string() ? !value.get_ref<const std::string&>().empty() : !value.empty();
}

std::string as_text(const Value& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_discarded()) return "";
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_number_integer()) return value.dump();
  fail(kind_of(value) + " as text");
}

Value combine(const std::string& sign, const Value& left, const Value& right) {
  if (sign == "==" || sign == "!=") {
    const bool same = left.is_discarded() || right.is_discarded()
                          ? left.is_discarded() && right.is_discarded()
                          : left == right;
    return same == (sign == "==");
  }
  if (sign == "~") return as_text(left) + as_text(right);
  if (sign == "in") {
    if (right.is_string()) return is_in(right.get_ref<const std::string&>(), text_of(left, "in"));
    if (right.is_object()) return left.is_string() && right.contains(left.get<std::string>());
    if (!right.is_array()) fail("in of " + kind_of(right));
    return std::ranges::find(right, left) != right.end();
  }
  if (sign == "<" || sign == ">" || sign == "<=" || sign == ">=")
    return compared(sign, left, right);
  if (sign == "+" && left.is_string() && right.is_string())
    return left.get_ref<const std::string&>() + right.get_ref<const std::string&>();
  if (sign == "+" && left.is_array() && right.is_array()) {
    Value both = left;
    both.insert(both.end(), right.begin(), right.end());
    return both;
  }
  return computed(sign, left, right);
}

Value element(const Value& value, const Value& index) {
  if (value.is_discarded()) fail("a part of what is not defined");
  if (!value.is_object() && index.is_string() && is_number(index.get_ref<const std::string&>()))
    return element(value, std::stoll(index.get_ref<const std::string&>()));  // value.0
  if (value.is_object() && index.is_string()) {
    const auto found = value.find(index.get<std::string>());
    return found != value.end() ? *found : undefined_value();
  }
  if ((value.is_array() || value.is_string()) && index.is_number_integer()) {
    const Value list = list_of(value);
    const std::int64_t size = length_of(list), at = integer_of(index) + (index < 0 ? size : 0);
    return at >= 0 && at < size ? list[at] : undefined_value();
  }
  return undefined_value();
}

Value slice(const Value& value, const Value& begin, const Value& end, const Value& step) {
  const Value list = list_of(value);
  const std::int64_t size = length_of(list), by = step.is_null() ? 1 : integer_of(step);
  if (by == 0) fail("a slice with a step of 0");
  const auto bound = [&](const Value& given, std::int64_t otherwise) {
    if (given.is_null()) return otherwise;
    const std::int64_t at = integer_of(given) + (given < 0 ? size : 0);
    return by > 0 ? std::clamp(at, std::int64_t{0}, size)
                  : std::clamp(at, std::int64_t{-1}, size - 1);
  };
  const std::int64_t first = bound(begin, by > 0 ? 0 : size - 1),
                     last = bound(end, by > 0 ? size : -1);
  Value result = Value::array();
  for (std::int64_t i = first; by > 0 ? i < last : i > last; i += by) result.push_back(list[i]);
  if (!value.is_string()) return result;
  std::string text;
  for (const Value& c : result) text += c.get_ref<const std::string&>();
  return text;
}

bool test(const std::string& name, const Value& value, const TemplateArguments& arguments) {
  if (name == "defined") return !value.is_discarded();
  if (name == "undefined") return value.is_discarded();
  if (name == "none") return value.is_null();
  if (name == "string") return value.is_string();
  if (name == "mapping") return value.is_object();
  if (name == "iterable" || name == "sequence")
    return value.is_array() || value.is_object() || value.is_string();
  if (name == "number" || name == "integer") return value.is_number_integer();
  if (name == "boolean") return value.is_boolean();
  if (name == "true" || name == "false") return value == (name == "true");
  if ((name == "equalto" || name == "eq") && arguments.size() == 1) return value == arguments[0];
  if (name == "in" && arguments.size() == 1) return is_true(combine("in", value, arguments[0]));
  fail("the test " + name + " is not supported");
}

Value call_method(const Value& value, const std::string& name, const TemplateArguments& arguments) {
  if (value.is_object()) {
    if (name == "items" && arguments.empty()) return items_of(value);
    if (name == "keys" && arguments.empty()) return list_of(value);
    if (name == "get" && !arguments.empty()) {
      const Value found = element(value, arguments[0]);
      return !found.is_discarded() ? found : arguments.size() > 1 ? arguments[1] : Value();
    }
    fail("the method " + name + " of a map is not supported");
  }
  const std::string& text = text_of(value, name);
  const std::string* first = !arguments.empty() ? &text_of(arguments[0], "an argument") : nullptr;
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const bool left = name != "rstrip", right = name != "lstrip";
    if (first != nullptr) return stripped(text, left, right, *first);
    return std::string(!left ? strip_end(text) : !right ? strip_begin(text) : strip(text));
  }
  if (name == "upper") return in_case(text, std::toupper);
  if (name == "lower") return in_case(text, std::tolower);
  if (arguments.size() == 1) {
    if (name == "startswith") return text.starts_with(*first);
    if (name == "endswith") return text.ends_with(*first);
    if (name == "split") return split(text, *first);
  }
  if (name == "replace" && arguments.size() == 2) {
    if (first->empty()) fail("replace of an empty text");
    return replaced(text, *first, text_of(arguments[1], name));
  }
  fail("the method " + name + " of a text is not supported");
}

}  // namespace roundhouse
