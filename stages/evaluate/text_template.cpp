#include "stages/evaluate/text_template.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace roundhouse {
namespace {

using Json = TextTemplate::Json;
using Value = TextTemplate::Value;
using Chain = TextTemplate::Chain;
using Chains = std::map<std::string, Chain>;
using Expression = TextTemplate::Expression;
using Filtering = TextTemplate::Filtering;

constexpr int kMostDepth = 16;

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, const Chains& chains) : text_(text), chains_(chains) {}

  std::vector<Expression> text() {
    std::vector<Expression> parts;
    std::string plain;
    const auto flush = [&] {
      if (!plain.empty()) {
        parts.emplace_back();
        parts.back().constant = std::exchange(plain, {});
      }
    };
    while (at_ < text_.size()) {
      if (take("{{")) {
        flush();
        parts.push_back(expression(0));
        if (!take("}}")) fail("}} is missing");
      } else if (ahead("{%") || ahead("{#")) {
        fail("of Jinja2 there are only {{expressions}} here");
      } else {
        plain += text_[at_++];
      }
    }
    flush();
    return parts;
  }

  Chain chain() {
    Chain filters;
    add_filter(filters, 0);
    blanks();
    while (take("|")) {
      add_filter(filters, 0);
      blanks();
    }
    if (at_ < text_.size()) fail("there must be a | between filters");
    return filters;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    const std::string_view rest = text_.substr(std::min(at_, text_.size()));
    throw InputError(what + (rest.empty() ? ", at the end" : ", at " + in_quotes(rest)));
  }

  bool ahead(std::string_view what) const { return text_.substr(at_).starts_with(what); }
  bool take(std::string_view what) {
    if (!ahead(what)) return false;
    at_ += what.size();
    return true;
  }
  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }

  // primary { "|" filter }, and blanks behind it.
  Expression expression(int depth) {
    if (depth > kMostDepth) fail("nested too deep");
    blanks();
    Expression made;
    if (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) {
      made.constant = quoted();
    } else if (take("[")) {
      made.is_list = true;
      made.items = list("]", depth);
    } else if (at_ < text_.size() && is_letter(text_[at_])) {
      made.path = path();
    } else {
      fail("there must be a field, a \"text\" or a [list]");
    }
    blanks();
    while (take("|")) {
      add_filter(made.filters, depth);
      blanks();
    }
    return made;
  }

  std::vector<Expression> list(std::string_view end, int depth) {
    std::vector<Expression> items;
    blanks();
    if (take(end)) return items;
    do {
      items.push_back(expression(depth + 1));
    } while (take(","));
    if (!take(end)) fail(std::string(end) + " is missing");
    return items;
  }

  std::string name() {
    const std::size_t begin = at_;
    while (at_ < text_.size() && (is_letter(text_[at_]) || is_digit(text_[at_]))) ++at_;
    if (at_ == begin) fail("there must be a name");
    return std::string(text_.substr(begin, at_ - begin));
  }

  std::vector<std::string> path() {
    std::vector<std::string> steps = {name()};
    while (take(".")) steps.push_back(name());
    return steps;
  }

  std::string quoted() {
    const char quote = text_[at_++];
    std::string made;
    for (; at_ < text_.size() && text_[at_] != quote; ++at_) {
      if (text_[at_] != '\\') {
        made += text_[at_];
        continue;
      }
      ++at_;
      constexpr std::string_view kEscapes = "nt\\\"'", kMeanings = "\n\t\\\"'";
      const std::size_t which =
          at_ < text_.size() ? kEscapes.find(text_[at_]) : std::string_view::npos;
      if (which == std::string_view::npos) fail(R"(after \ there must be n, t, \, " or ')");
      made += kMeanings[which];
    }
    if (at_ >= text_.size()) fail("a quote does not end");
    ++at_;
    return made;
  }

  void add_filter(Chain& filters, int depth) {
    blanks();
    const std::string called = name();
    std::vector<Expression> arguments;
    if (take("(")) arguments = list(")", depth);
    const auto own = chains_.find(called);
    const TextFilter* filter = find_text_filter(called);
    std::size_t want = 1;
    if (own != chains_.end()) {
      want = 0;
    } else if (filter != nullptr) {
      want = filter->arguments;
    } else if (called != "default") {
      const std::vector<std::string> nearest = nearest_words(called, text_filter_names(), 1);
      fail("there is no filter " + in_quotes(called) +
           (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)"));
    }
    if (arguments.size() != want) {
      fail(called + " takes " + std::to_string(want) +
           (want == 1 ? " argument, not " : " arguments, not ") + std::to_string(arguments.size()));
    }
    if (own != chains_.end()) {
      filters.insert(filters.end(), own->second.begin(), own->second.end());
    } else {
      filters.push_back({filter, std::move(arguments)});
    }
  }

  std::string_view text_;
  const Chains& chains_;
  std::size_t at_ = 0;
};

std::string written(const std::vector<std::string>& path) {
  std::string text;
  for (const std::string& step : path) text += (text.empty() ? "" : ".") + step;
  return text;
}

// A member of an object, that member of each object of a list, or a list's element; nothing if it is not there.
Value member(const Json& value, const std::string& step) {
  if (value.is_object()) {
    const auto found = value.find(step);
    return found == value.end() ? Value() : Value(*found);
  }
  if (!value.is_array()) return {};
  if (is_digit(step[0])) {
    std::size_t index = 0;
    const auto [end, error] = std::from_chars(step.data(), step.data() + step.size(), index);
    const bool good =
        error == std::errc{} && end == step.data() + step.size() && index < value.size();
    return good ? Value(value[index]) : Value();
  }
  Json list = Json::array();
  for (const Json& each : value) {
    const auto found = each.is_object() ? each.find(step) : each.end();
    if (!each.is_object() || found == each.end()) return {};
    list.push_back(*found);
  }
  return list;
}

std::string name_of(const Expression& expression) {
  return expression.path.empty() ? "a text" : in_quotes(written(expression.path));
}

class Evaluator {
 public:
  explicit Evaluator(const TextTemplate::Lookup& names) : names_(names) {}

  Value evaluate(const Expression& expression) {
    Value value = primary(expression);
    const std::string name = name_of(expression);
    for (const Filtering& each : expression.filters) {
      if (each.filter == nullptr) {
        if (!value) value = evaluate(each.arguments[0]);
        continue;
      }
      if (!value) throw InputError(name + " is missing");
      std::vector<Json> arguments;
      for (const Expression& argument : each.arguments) arguments.push_back(there(argument));
      try {
        value = each.filter->apply(*value, arguments);
      } catch (const InputError& error) {
        throw InputError(name + ", for " + std::string(each.filter->name) + ": " + error.what());
      }
      account(*value);
    }
    return value;
  }

  Json there(const Expression& expression) {
    Value value = evaluate(expression);
    if (value) return std::move(*value);
    throw InputError(name_of(expression) + " is missing");
  }

  void account(const Json& value) {
    bytes_ += bytes_of(value);
    if (bytes_ > kMostTemplateBytes)
      throw InputError("a text of more than " + std::to_string(kMostTemplateBytes) + " bytes");
  }

 private:
  Value primary(const Expression& expression) {
    if (expression.is_list) {
      Json list = Json::array();
      for (const Expression& item : expression.items) {
        list.push_back(there(item));
        account(list.back());
        if (list.back().is_structured()) throw InputError("lists within lists");
      }
      return list;
    }
    if (expression.path.empty()) return expression.constant;
    Value value = names_(expression.path[0]);
    for (std::size_t i = 1; value && i < expression.path.size(); ++i)
      value = member(*value, expression.path[i]);
    if (value) account(*value);
    return value;
  }

  const TextTemplate::Lookup& names_;
  std::size_t bytes_ = 0;
};

}  // namespace

TextTemplate::TextTemplate(std::string_view text, const Chains& chains)
    : parts_(Parser(text, chains).text()) {}

Chain TextTemplate::parse_chain(std::string_view text) { return Parser(text, {}).chain(); }

std::string TextTemplate::name() const {
  return parts_.size() == 1 ? name_of(parts_[0]) : "a text";
}

Value TextTemplate::evaluate(const Lookup& names) const {
  Evaluator evaluator(names);
  if (parts_.size() == 1) return evaluator.evaluate(parts_[0]);
  std::string text;
  for (const Expression& part : parts_) {
    const Json value = evaluator.there(part);
    if (!value.is_string()) throw InputError(name_of(part) + " must be a text");
    text += value.get_ref<const std::string&>();
    evaluator.account(value);
  }
  return Json(std::move(text));
}

}  // namespace roundhouse
