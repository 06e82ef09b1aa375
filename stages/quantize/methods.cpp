#include "stages/quantize/methods.h"

#include <string_view>

#include "base/quote.h"
#include "stages/quantize/awq/awq.h"
#include "stages/quantize/gptq/gptq.h"
#include "stages/quantize/llm_mq/llm_mq.h"
#include "stages/quantize/rtn/rtn.h"
#include "stages/quantize/signround/signround.h"
#include "stages/quantize/squeezellm/squeezellm.h"

namespace roundhouse {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Method> (*make)(OptionReader& options);
};

// Every method there is.
constexpr Entry kMethods[] = {
    {"rtn", make_rtn},
    {"gptq", make_gptq},
    {"awq", make_awq},
    {"signround", make_signround},
    {"squeezellm", make_squeezellm},
    {"llm-mq", make_llm_mq},
};

}  // namespace

std::unique_ptr<Method> make_method(const std::string& method, OptionReader& options) {
  std::string known;
  for (const Entry& entry : kMethods) {
    if (entry.name == method) return entry.make(options);
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw RecipeError{"method", in_quotes(method) + " is not one of " + known};
}

std::unique_ptr<Method> make_method(const Recipe& recipe) {
  OptionReader options(recipe.options);
  std::unique_ptr<Method> method = make_method(recipe.method, options);
  options.finish();
  return method;
}

std::vector<LinearScheme> own_schemes(const Recipe& recipe) {
  return recipe.overrides.empty() ? recipe.schemes : make_method(recipe)->schemes();
}

}  // namespace roundhouse
