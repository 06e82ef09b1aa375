#include "model/template/template_evaluator.h"

#include <algorithm>
#include <cstdint>

#include "base/quote.h"

namespace roundhouse {
namespace {

using Kind = TemplateExpression::Kind;
using Value = TemplateValue;

constexpr int kMaxSteps = 1'000'000;
constexpr std::int64_t kMaxRange = 100'000;

std::string path_of(const TemplateExpression& e) {
  if (e.kind == Kind::kName) return e.name;
  if (e.kind == Kind::kFilter) return path_of(*e.operands[0]);
  if (e.kind != Kind::kAttribute) return "";
  const std::string whole = path_of(*e.operands[0]);
  return whole.empty() ? "" : whole + "." + e.name;
}

}  // namespace

std::string name_of(const TemplateExpression& expression) {
  const std::string path = path_of(expression);
  return path.empty() ? "a text" : in_quotes(path);
}

void TemplateEvaluator::step() {
  if (++steps_ > kMaxSteps) throw TemplateError("takes too many steps");
}

Value TemplateEvaluator::attribute(const Value& whole, const std::string& name) {
  return element(whole, name);
}

const TemplateFilter* TemplateEvaluator::filter(const std::string& name) {
  return find_template_filter(name);
}

Value TemplateEvaluator::operand(const TemplateExpression& expression) {
  return value_of(expression);
}

Value TemplateEvaluator::value_of(const TemplateExpression& e) {
  step();
  Value value = computed(e);
  check(value);
  return value;
}

// Where a variable or a part of it is kept, so that conversations are not copied for each look at them; nullptr: nowhere.
const Value* TemplateEvaluator::place_of(const TemplateExpression& e) {
  if (e.kind == Kind::kName) return variable(e.name);
  if (e.kind != Kind::kAttribute && e.kind != Kind::kIndex) return nullptr;
  const Value index = e.kind == Kind::kIndex ? value_of(*e.operands[1]) : Value(e.name);
  const Value* whole = place_of(*e.operands[0]);
  if (whole == nullptr) return nullptr;
  if (whole->is_object() && index.is_string()) {
    const auto found = whole->find(index.get_ref<const std::string&>());
    return found != whole->end() ? &*found : nullptr;
  }
  if (!whole->is_array() || !index.is_number_integer()) return nullptr;
  const auto size = static_cast<std::int64_t>(whole->size());
  const std::int64_t at = index.get<std::int64_t>() + (index < 0 ? size : 0);
  return at >= 0 && at < size ? &(*whole)[at] : nullptr;
}

Value TemplateEvaluator::computed(const TemplateExpression& e) {
  const auto part = [&](std::size_t i) { return value_of(*e.operands[i]); };
  switch (e.kind) {
    case Kind::kValue:
      return e.value;
    case Kind::kName: {
      const Value* place = place_of(e);
      return place != nullptr ? *place : undefined_value();
    }
    case Kind::kAttribute: {
      if (const Value* place = place_of(e)) return *place;
      return attribute(part(0), e.name);
    }
    case Kind::kIndex: {
      if (const Value* place = place_of(e)) return *place;
      return element(part(0), part(1));
    }
    case Kind::kSlice: {
      const auto bound = [&](std::size_t i) { return e.operands[i] ? part(i) : Value(); };
      return slice(part(0), bound(1), bound(2), bound(3));
    }
    case Kind::kCall:
      return call(e);
    case Kind::kFilter:
      return filtered(e);
    case Kind::kTest:
      return test(e.name, part(0), arguments_of(e));
    case Kind::kNot:
      return !is_true(part(0));
    case Kind::kNegative:
      return combine("-", 0, part(0));
    case Kind::kBinary: {
      Value left = part(0);
      if (e.name == "and") return is_true(left) ? part(1) : left;
      if (e.name == "or") return is_true(left) ? left : part(1);
      return combine(e.name, left, part(1));
    }
    case Kind::kChoice:
      if (is_true(part(1))) return part(0);
      return e.operands[2] ? part(2) : undefined_value();
    case Kind::kList: {
      Value list = Value::array();
      for (const auto& each : e.operands) list.push_back(operand(*each));
      return list;
    }
    case Kind::kMap: {
      Value map = Value::object();
      for (const auto& [key, value] : e.named) map[key] = value_of(*value);
      return map;
    }
  }
  throw TemplateError("an expression of no kind");
}

Value TemplateEvaluator::filtered(const TemplateExpression& e) {
  const TemplateFilter* chosen = filter(e.name);
  if (chosen == nullptr) throw TemplateError("the filter " + e.name + " is not supported");
  const Value value = value_of(*e.operands[0]);
  if (value.is_discarded() && !chosen->takes_undefined)
    throw TemplateError(name_of(e) + " is missing");
  if (chosen->is_default && !value.is_discarded() && e.operands.size() + e.named.size() <= 2)
    return value;
  TemplateArguments arguments;
  const auto argument = [&](const TemplateExpression& given) {
    return chosen->takes_undefined ? value_of(given) : operand(given);
  };
  for (std::size_t i = 1; i < e.operands.size(); ++i) arguments.push_back(argument(*e.operands[i]));
  for (const auto& [key, given] : e.named) {
    const auto* at = std::ranges::find(chosen->parameters, key);
    if (at == chosen->parameters.end())
      throw TemplateError("the filter " + e.name + " has no argument " + key);
    const auto index = static_cast<std::size_t>(at - chosen->parameters.begin());
    while (arguments.size() <= index)
      arguments.push_back(arguments.empty() ? Value("") : undefined_value());
    arguments[index] = argument(*given);
  }
  if (arguments.size() < chosen->least || arguments.size() > chosen->most)
    throw TemplateError("the filter " + e.name + " with other arguments than it takes");
  try {
    return chosen->apply(value, arguments);
  } catch (const TemplateError& error) {
    throw TemplateError(name_of(e) + ", for " + e.name + ": " + error.what());
  }
}

TemplateArguments TemplateEvaluator::arguments_of(const TemplateExpression& e) {
  TemplateArguments arguments;
  for (std::size_t i = 1; i < e.operands.size(); ++i) arguments.push_back(value_of(*e.operands[i]));
  return arguments;
}

Value TemplateEvaluator::call(const TemplateExpression& e) {
  const TemplateExpression& callee = *e.operands[0];
  const TemplateArguments arguments = arguments_of(e);
  if (callee.kind == Kind::kAttribute)
    return call_method(value_of(*callee.operands[0]), callee.name, arguments);
  if (callee.kind != Kind::kName) throw TemplateError("a call that is not supported");
  if (callee.name == "namespace") {
    Value object = Value::object();
    for (const auto& [key, value] : e.named) object[key] = value_of(*value);
    return object;
  }
  if (callee.name == "raise_exception" && arguments.size() == 1)
    throw TemplateError("says: " + as_text(arguments[0]));
  if (callee.name == "range" && !arguments.empty() && arguments.size() < 3) {
    Value list = Value::array();
    const Value begin = arguments.size() == 2 ? arguments[0] : Value(0), end = arguments.back();
    if (!begin.is_number_integer() || !end.is_number_integer() ||
        end.get<std::int64_t>() - begin.get<std::int64_t>() > kMaxRange)
      throw TemplateError("a range that is too long");
    for (auto i = begin.get<std::int64_t>(); i < end.get<std::int64_t>(); ++i) list.push_back(i);
    return list;
  }
  throw TemplateError("the function " + callee.name + " is not supported");
}

}  // namespace roundhouse
