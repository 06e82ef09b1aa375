// Every method there is, by name.
#pragma once

#include <memory>
#include <string>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

// Throws RecipeError: unknown method, wrong options. `options` is asked for every key of the method (for name and record).
std::unique_ptr<Method> make_method(const std::string& method, OptionReader& options);
std::unique_ptr<Method> make_method(const Recipe& recipe);

// What the method itself makes of linears, overrides left aside: the first of Recipe::schemes.
std::vector<LinearScheme> own_schemes(const Recipe& recipe);

}  // namespace roundhouse
