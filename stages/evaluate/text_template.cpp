#include "stages/evaluate/text_template.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/quote.h"
#include "model/template/template_evaluator.h"
#include "stages/evaluate/wikitext.h"

namespace roundhouse {
namespace {

using Json = TextTemplate::Json;
using Value = TextTemplate::Value;
using Chains = TextTemplate::Chains;
using Kind = TemplateExpression::Kind;
using Tree = std::unique_ptr<TemplateExpression>;

// Besides those of the language.
constexpr TemplateFilter kDetokenize = {
    "detokenize_wikitext", 0, 0, [](const Json& value, std::span<const Json>) {
      return each_text(value, [](const std::string& text) { return detokenized_wikitext(text); });
    }};

const TemplateFilter* find_filter(const std::string& name) {
  return name == kDetokenize.name ? &kDetokenize : find_template_filter(name);
}

void check_filter(const TemplateExpression& e) {
  const TemplateFilter* filter = find_filter(e.name);
  if (filter == nullptr) {
    std::vector<std::string> known = template_filter_names();
    known.emplace_back(kDetokenize.name);
    const std::vector<std::string> nearest = nearest_words(e.name, known, 1);
    throw InputError("there is no filter " + in_quotes(e.name) +
                     (nearest.empty() ? "" : " (did you mean " + in_quotes(nearest) + "?)"));
  }
  const std::size_t given = e.operands.size() - 1 + e.named.size();
  if (given < filter->least || given > filter->most) {
    throw InputError(fmt::format(
        "{} takes {}, not {}", e.name,
        counted(given < filter->least ? filter->least : filter->most, "argument"), given));
  }
}

// The chain's filters, of `value`.
Tree applied(const std::string& chain, Tree value) {
  std::vector<TemplateNode> parsed = parse_expressions("{{ value | " + chain + " }}");
  const bool one = parsed.size() == 1 && parsed[0].kind == TemplateNode::Kind::kOutput;
  Tree* at = one ? &parsed[0].expression : nullptr;
  if (one && (*at)->kind != Kind::kFilter) at = nullptr;
  while (at != nullptr && (*at)->kind == Kind::kFilter) at = &(*at)->operands[0];
  if (at == nullptr || (*at)->kind != Kind::kName)
    throw InputError("must be filters with | between them");
  *at = std::move(value);
  return std::move(parsed[0].expression);
}

// Puts chains in place, and looks at all filters.
void settle(Tree& tree, const Chains& chains) {
  if (!tree) return;
  const auto own = tree->kind == Kind::kFilter ? chains.find(tree->name) : chains.end();
  if (own != chains.end()) {
    if (tree->operands.size() + tree->named.size() > 1)
      throw InputError(fmt::format("{} takes {}, not {}", tree->name, counted(0, "argument"),
                                   tree->operands.size() + tree->named.size() - 1));
    tree = applied(own->second, std::move(tree->operands[0]));
  }
  if (tree->kind == Kind::kFilter) check_filter(*tree);
  for (Tree& operand : tree->operands) settle(operand, chains);
  for (auto& [name, operand] : tree->named) settle(operand, chains);
}

class Evaluator final : public TemplateEvaluator {
 public:
  explicit Evaluator(const TextTemplate::Lookup& names) : names_(names) {}

  Json there(const TemplateExpression& e) {
    Json value = value_of(e);
    if (value.is_discarded()) throw TemplateError(name_of(e) + " is missing");
    return value;
  }

  void check(const Json& value) override {
    bytes_ += bytes_of(value);
    if (bytes_ > kMostTemplateBytes) {
      throw TemplateError(fmt::format("a text of more than {} bytes", kMostTemplateBytes));
    }
  }

 private:
  const Json* variable(const std::string& name) override { return names_(name); }
  const TemplateFilter* filter(const std::string& name) override { return find_filter(name); }
  Json operand(const TemplateExpression& e) override { return there(e); }

  // Of a list of objects: that of each. Of what is not there: nothing, for `default` to take.
  Json attribute(const Json& whole, const std::string& name) override {
    if (whole.is_discarded()) return undefined_value();
    const bool index = name.find_first_not_of("0123456789") == name.npos;
    if (!whole.is_array() || index) return element(whole, name);
    Json list = Json::array();
    for (const Json& each : whole) {
      const auto found = each.is_object() ? each.find(name) : each.end();
      if (!each.is_object() || found == each.end()) return undefined_value();
      list.push_back(*found);
    }
    return list;
  }

  const TextTemplate::Lookup& names_;
  std::size_t bytes_ = 0;
};

}  // namespace

TextTemplate::TextTemplate(std::string_view text, const Chains& chains) {
  std::vector<TemplateNode> parts = parse_expressions(text);
  for (TemplateNode& part : parts) settle(part.expression, chains);
  parts_ = std::make_shared<const std::vector<TemplateNode>>(std::move(parts));
}

void TextTemplate::check_chain(const std::string& chain) {
  Tree value = std::make_unique<TemplateExpression>();
  Tree tree = applied(chain, std::move(value));
  settle(tree, {});
}

std::string TextTemplate::name() const {
  const bool one = parts_->size() == 1 && parts_->front().expression;
  return one ? name_of(*parts_->front().expression) : "a text";
}

Value TextTemplate::evaluate(const Lookup& names) const {
  Evaluator evaluator(names);
  try {
    if (parts_->size() == 1 && parts_->front().expression) {
      Json value = evaluator.value_of(*parts_->front().expression);
      return value.is_discarded() ? Value() : Value(std::move(value));
    }
    std::string text;
    for (const TemplateNode& part : *parts_) {
      if (!part.expression) {
        text += part.text;
        continue;
      }
      const Json value = evaluator.there(*part.expression);
      if (!value.is_string()) throw TemplateError(name_of(*part.expression) + " must be a text");
      text += value.get_ref<const std::string&>();
      evaluator.check(value);
    }
    return Json(std::move(text));
  } catch (const TemplateError& error) {
    throw InputError(error.what());
  }
}

bool is_text_filter(const std::string& name) { return find_filter(name) != nullptr; }

}  // namespace roundhouse
