// Computes expressions of a template. What names stand for is said by who uses it.
#pragma once

#include <cstddef>
#include <string>

#include "model/template/template_filters.h"
#include "model/template/template_tree.h"
#include "model/template/template_value.h"

namespace roundhouse {

// For people: "question.stem" in quotes, or "a text".
std::string name_of(const TemplateExpression& expression);

class TemplateEvaluator {
 public:
  TemplateEvaluator() = default;
  TemplateEvaluator(const TemplateEvaluator&) = delete;
  TemplateEvaluator& operator=(const TemplateEvaluator&) = delete;
  virtual ~TemplateEvaluator() = default;

  // Undefined where there is nothing. Throws TemplateError: what cannot be computed, or takes more than a million steps.
  TemplateValue value_of(const TemplateExpression& expression);

 protected:
  void step();

  // nullptr: there is none. Looked at until the next one is asked for.
  virtual const TemplateValue* variable(const std::string& name) = 0;
  virtual TemplateValue attribute(const TemplateValue& whole, const std::string& name);
  virtual const TemplateFilter* filter(const std::string& name);
  // An element of a list, or an argument of a filter.
  virtual TemplateValue operand(const TemplateExpression& expression);
  // Whatever was computed. Throws where it is too much.
  virtual void check(const TemplateValue& value) = 0;

 private:
  const TemplateValue* place_of(const TemplateExpression& e);
  TemplateValue computed(const TemplateExpression& e);
  TemplateValue filtered(const TemplateExpression& e);
  TemplateValue call(const TemplateExpression& e);
  TemplateArguments arguments_of(const TemplateExpression& e);

  int steps_ = 0;
};

}  // namespace roundhouse
