#include "stages/quantize/recipe.h"

#include <algorithm>
#include <string_view>

#include "stages/quantize/method.h"
#include "stages/quantize/options.h"

namespace roundhouse {
namespace {

// A name becomes a folder of the run and of the export.
void check_name(const std::string& name) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";
  constexpr std::size_t kLongest = 100;
  if (name.empty() || name.size() > kLongest || name.front() == '.' ||
      name.find_first_not_of(kAllowed) != std::string::npos) {
    throw RecipeError{"name",
                      "must be 1 to 100 letters, digits, '-', '.' or '_', and not start with '.'"};
  }
}

std::int64_t take_integer(nlohmann::json& object, const std::string& key, std::int64_t fallback) {
  const auto found = object.find(key);
  if (found == object.end()) return fallback;
  if (!found->is_number_integer()) throw RecipeError{key, "must be a whole number"};
  const auto value = found->get<std::int64_t>();
  object.erase(found);
  return value;
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
  const std::int64_t bits = take_integer(options, "bits", recipe.bits);
  recipe.group_size = take_integer(options, "group_size", recipe.group_size);

  if (recipe.method.empty()) throw RecipeError{"method", "is missing"};
  if (bits != 2 && bits != 3 && bits != 4 && bits != 8) {
    throw RecipeError{"bits", "must be 2, 3, 4 or 8"};
  }
  recipe.bits = static_cast<int>(bits);
  if (recipe.group_size != -1 && recipe.group_size < 1) {
    throw RecipeError{"group_size", "must be at least 1, or -1 for the whole row"};
  }

  OptionReader reader(options);
  make_method(recipe.method, recipe.bits, recipe.group_size, reader);  // for its checks
  reader.finish();
  recipe.options = reader.resolved();

  if (!named) {
    recipe.name = recipe.method + "-w" + std::to_string(recipe.bits);
    if (recipe.group_size != -1) recipe.name += "g" + std::to_string(recipe.group_size);
    recipe.name += reader.name_suffix();
  }
  check_name(recipe.name);
  return recipe;
}

nlohmann::json resolved(const Recipe& recipe) {
  nlohmann::json object = recipe.options.is_null() ? nlohmann::json::object() : recipe.options;
  object["name"] = recipe.name;
  object["method"] = recipe.method;
  object["bits"] = recipe.bits;
  object["group_size"] = recipe.group_size;
  return object;
}

}  // namespace roundhouse
