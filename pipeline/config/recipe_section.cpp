#include "pipeline/config/sections.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "pipeline/config/sweep.h"
#include "pipeline/run/run_files.h"

namespace roundhouse {
namespace {

constexpr const char* kOverrides = "overrides";
constexpr const char* kInclude = "include";

// Where an entry of a list of maps stands, "overrides[1]" or "overrides[1].bits"; nullptr: there is none such.
const YamlNode* find_in_list(const YamlNode& node, const std::string& key) {
  const std::size_t open = key.find('['), close = key.find(']');
  if (open == key.npos || close == key.npos || close < open) return nullptr;
  const YamlNode* const list = node.find(key.substr(0, open));
  std::size_t index = 0;
  const auto [stop, error] = std::from_chars(key.data() + open + 1, key.data() + close, index);
  if (list == nullptr || error != std::errc{} || stop != key.data() + close ||
      index >= list->items.size())
    return nullptr;
  const YamlNode& entry = list->items[index];
  const YamlNode* const value = close + 2 < key.size() && entry.kind == YamlNode::Kind::kMap
                                    ? entry.find(key.substr(close + 2))
                                    : nullptr;
  return value != nullptr ? value : &entry;
}

// Places of the keys of a list of maps: "overrides[1].bits".
void note_places(const YamlNode& list, const std::string& key, const std::string& path,
                 Recipe& recipe) {
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    const YamlNode& entry = list.items[i];
    for (std::size_t k = 0; k < entry.keys.size(); ++k) {
      const std::string name = fmt::format("{}[{}].{}", key, i, entry.keys[k]);
      recipe.where[name] = entry.items[k].where + ": " + path + "." + name;
    }
  }
}

Recipe parse_node(const YamlNode& node, const std::string& path) {
  const nlohmann::json object = to_json(node);
  try {
    Recipe recipe = parse_recipe(object);
    recipe.where[""] = node.where + ": " + path;
    for (std::size_t i = 0; i < node.keys.size(); ++i)
      recipe.where[node.keys[i]] = node.items[i].where + ": " + path + "." + node.keys[i];
    if (const YamlNode* const overrides = node.find(kOverrides))
      note_places(*overrides, kOverrides, path, recipe);
    return recipe;
  } catch (const RecipeError& error) {
    if (const YamlNode* const entry = find_in_list(node, error.key))
      fail(entry->where, path + "." + error.key, error.what);
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
      known.insert(known.end(), {kOverrides, kInclude});
    } catch (const RecipeError&) {
      known.clear();
    }
    if (!known.empty() && std::ranges::find(known, error.key) == known.end()) {
      fail(at->where, path, unknown_key(error.key, known));
    }
    fail(at->where, path + "." + error.key, error.what);
  }
}

// Which calibration set a recipe looks at is the configuration's to know: its own key, or what its method looks at.
Recipe read_recipe(YamlNode node, const std::string& path, const SetOfMethod& sets,
                   const RunConfig& config) {
  std::optional<std::string> given;
  std::string given_at;
  if (const YamlNode* const set = node.find("calibration")) {
    given = Section::scalar(*set, path + ".calibration");
    given_at = set->where;
    const auto at = std::ranges::find(node.keys, "calibration") - node.keys.begin();
    node.keys.erase(node.keys.begin() + at);
    node.items.erase(node.items.begin() + at);
  }
  Recipe recipe = parse_node(node, path);
  const auto of_method = sets.find(recipe.method);
  const std::string usual = of_method != sets.end() ? of_method->second : kDefaultCalibration;
  recipe.calibration = given.value_or(usual);
  if (recipe.calibration != kDefaultCalibration &&
      !config.calibrations.contains(recipe.calibration)) {
    std::vector<std::string> known = {kDefaultCalibration};
    for (const auto& [name, set] : config.calibrations) known.push_back(name);
    fail(given_at, path + ".calibration",
         fmt::format("there is no set {} in calibrations: it has {}", in_quotes(recipe.calibration),
                     fmt::join(known, ", ")));
  }
  if (!recipe.needs.streams()) recipe.calibration = kDefaultCalibration;
  if (recipe.calibration != usual && node.find("name") == nullptr && recipe.needs.streams())
    recipe.name += "-calibration-" + recipe.calibration;
  return recipe;
}

void add_recipe(Recipe recipe, const std::string& where, const std::string& path,
                std::vector<Recipe>& recipes) {
  if (!is_plain_name(recipe.name)) {
    fail(where, path + ".name",
         "must be 1 to 100 letters, digits, '-', '.' or '_', and not start with '.'");
  }
  if (recipe.name == kOriginal) {
    fail(where, path + ".name", "'original' is what results of the model itself are called");
  }
  if (std::ranges::find(recipes, recipe.name, &Recipe::name) != recipes.end()) {
    fail(where, path,
         "a second recipe named " + in_quotes(recipe.name) +
             ": give one of them a `name:` of its own");
  }
  recipes.push_back(std::move(recipe));
}

}  // namespace

void read_recipes(Section& top, const SetOfMethod& sets, RunConfig& config) {
  const std::vector<YamlNode>* nodes = top.sequence("recipes");
  const YamlNode* const sweep = top.node("sweep");
  for (std::size_t i = 0; nodes != nullptr && i < nodes->size(); ++i) {
    const YamlNode& node = (*nodes)[i];
    const std::string path = fmt::format("recipes[{}]", i);
    add_recipe(read_recipe(node, path, sets, config), node.where, path, config.recipes);
  }
  std::vector<SweepRecipe> products;
  if (sweep != nullptr) products = expand_sweep(*sweep, config.notes);
  if (config.recipes.empty() && products.empty()) {
    fail(top.where("recipes"), "recipes", "is missing: name at least one, as in [{method: rtn}]");
  }
  for (SweepRecipe& each : products) {
    try {
      Recipe recipe = read_recipe(each.node, each.path, sets, config);
      add_recipe(std::move(recipe), each.node.where, each.path, config.recipes);
    } catch (const InputError& error) {
      throw InputError(fmt::format("{} (of the combination {}; `except` takes one out of a sweep)",
                                   error.what(), each.combination));
    }
  }
}

}  // namespace roundhouse
