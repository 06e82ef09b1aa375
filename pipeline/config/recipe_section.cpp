#include "pipeline/config/sections.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "pipeline/run/run_files.h"

namespace roundhouse {
namespace {

Recipe read_recipe(const YamlNode& node, const std::string& path) {
  const nlohmann::json object = to_json(node);
  try {
    Recipe recipe = parse_recipe(object);
    recipe.where[""] = node.where + ": " + path;
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      recipe.where[node.keys[i]] = node.items[i].where + ": " + path + "." + node.keys[i];
    return recipe;
  } catch (const RecipeError& error) {
    const YamlNode* at = error.key.empty() ? nullptr : node.find(error.key);
    if (at == nullptr) {
      fail(node.where, error.key.empty() ? path : path + "." + error.key, error.what);
    }
    // If the recipe is right without this key, and does not have it when written out, then it is no
    // key at all.
    nlohmann::json rest = object;
    rest.erase(error.key);
    std::vector<std::string> known;
    try {
      const nlohmann::json written_out = resolved(parse_recipe(rest));
      for (const auto& [key, value] : written_out.items()) known.push_back(key);
    } catch (const RecipeError&) {
      known.clear();
    }
    if (!known.empty() && std::ranges::find(known, error.key) == known.end()) {
      fail(at->where, path, unknown_key(error.key, known));
    }
    fail(at->where, path + "." + error.key, error.what);
  }
}

}  // namespace

std::vector<Recipe> read_recipes(Section& top) {
  const std::vector<YamlNode>* nodes = top.sequence("recipes");
  if (nodes == nullptr || nodes->empty()) {
    fail(top.where("recipes"), "recipes", "is missing: name at least one, as in [{method: rtn}]");
  }
  std::vector<Recipe> recipes;
  for (std::size_t i = 0; i < nodes->size(); ++i) {
    const YamlNode& node = (*nodes)[i];
    const std::string path = fmt::format("recipes[{}]", i);
    Recipe recipe = read_recipe(node, path);
    if (!is_plain_name(recipe.name)) {
      fail(node.where, path + ".name",
           "must be 1 to 100 letters, digits, '-', '.' or '_', and not start with '.'");
    }
    if (recipe.name == kOriginal) {
      fail(node.where, path + ".name", "'original' is what results of the model itself are called");
    }
    if (std::ranges::find(recipes, recipe.name, &Recipe::name) != recipes.end()) {
      fail(node.where, path,
           "a second recipe named " + in_quotes(recipe.name) +
               ": give one of them a `name:` of its own");
    }
    recipes.push_back(std::move(recipe));
  }
  return recipes;
}

}  // namespace roundhouse
