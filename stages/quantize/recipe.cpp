#include "stages/quantize/recipe.h"

#include <memory>

#include "base/file_name.h"
#include "stages/quantize/methods.h"
#include "stages/quantize/options.h"

namespace roundhouse {
namespace {

// A name becomes a folder of the run and of the export.
void check_name(const std::string& name) {
  if (!is_file_name(name)) {
    throw RecipeError{"name",
                      "must be 1 to 100 letters, digits, '-', '.' or '_', and not start with '.'"};
  }
}

std::string take_string(nlohmann::json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end()) return "";
  if (!found->is_string()) throw RecipeError{key, "must be text"};
  const auto value = found->get<std::string>();
  object.erase(found);
  return value;
}

}  // namespace

Recipe parse_recipe(const nlohmann::json& object) {
  if (!object.is_object()) {
    throw RecipeError{"", "a recipe is a set of keys, as in {method: gptq, bits: 4}"};
  }
  const bool named = object.contains("name");
  nlohmann::json options = object;
  Recipe recipe;
  recipe.method = take_string(options, "method");
  recipe.name = take_string(options, "name");
  if (recipe.method.empty()) throw RecipeError{"method", "is missing"};

  OptionReader reader(options);
  const std::unique_ptr<Method> method = make_method(recipe.method, reader);
  reader.finish();
  recipe.options = reader.resolved();
  recipe.needs = method->needs();
  recipe.schemes = method->schemes();
  recipe.one_scheme_an_input = method->one_scheme_an_input();
  if (!named) recipe.name = recipe.method + reader.name_suffix();
  check_name(recipe.name);
  return recipe;
}

nlohmann::json resolved(const Recipe& recipe) {
  nlohmann::json object = recipe.options.is_null() ? nlohmann::json::object() : recipe.options;
  object["name"] = recipe.name;
  object["method"] = recipe.method;
  return object;
}

}  // namespace roundhouse
