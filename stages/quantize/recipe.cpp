#include "stages/quantize/recipe.h"

#include <algorithm>
#include <memory>

#include <fmt/format.h>

#include "base/file_name.h"
#include "base/quote.h"
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

// Whether a method's recipes have such a key.
bool is_option(const std::string& method, const std::string& key) {
  const nlohmann::json none = nlohmann::json::object();
  OptionReader reader(none);
  (void)make_method(method, reader);
  return reader.resolved().contains(key);
}

std::string take_string(nlohmann::json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end()) return "";
  if (!found->is_string()) throw RecipeError{key, "must be text"};
  const auto value = found->get<std::string>();
  object.erase(found);
  return value;
}

// The method's options with those of an entry in place of its own.
nlohmann::json patched(nlohmann::json options, const nlohmann::json& entry, Grid usual) {
  if (entry.contains("grid")) options.erase("symmetric");
  if (entry.contains("symmetric")) {
    const nlohmann::json& symmetric = entry["symmetric"];
    // A grid that is of this kind already stays; else it is the method's usual one of the other kind.
    if (!entry.contains("grid") && symmetric.is_boolean() && symmetric != is_symmetric(usual))
      options.erase("grid");
  }
  for (const std::string& key : linear_options()) {
    if (entry.contains(key)) options[key] = entry[key];
  }
  return options;
}

// What the method makes of linears with these options.
LinearScheme scheme_with(const std::string& name, const nlohmann::json& options,
                         const nlohmann::json& entry) {
  OptionReader reader(options);
  const std::unique_ptr<Method> method = make_method(name, reader);
  reader.finish();
  const std::vector<LinearScheme> schemes = method->schemes();
  if (schemes.size() == 1) return schemes.front();
  if (!entry.contains("bits"))
    throw RecipeError{"bits", "is missing: this method chooses the widths of the other linears"};
  std::string widths;
  for (const LinearScheme& scheme : schemes) {
    if (entry["bits"] == scheme.bits) return scheme;
    widths += fmt::format("{}{}", widths.empty() ? "" : ", ", scheme.bits);
  }
  throw RecipeError{"bits", "must be one of " + widths};
}

LinearOverride read_override(const std::string& method, const nlohmann::json& options,
                             const LinearScheme& usual, const nlohmann::json& entry) {
  if (!entry.is_object())
    throw RecipeError{"", R"(must be a set of keys, as in {match: "*.down_proj", bits: 8})"};
  const auto match = entry.find("match");
  if (match == entry.end()) throw RecipeError{"match", "is missing"};
  if (!match->is_string() || match->get<std::string>().empty())
    throw RecipeError{"match", "must be a pattern of names, as in \"*.down_proj\""};
  LinearOverride read{.match = match->get<std::string>(), .scheme = {}, .given = entry};
  bool differs = false;
  for (const auto& [key, value] : entry.items()) {
    if (key == "match" || key == "skip") continue;
    if (std::ranges::find(linear_options(), key) == linear_options().end()) {
      if (options.contains(key) || is_option(method, key)) {
        throw RecipeError{key,
                          "is the same for all linears of a recipe; what may differ is bits, "
                          "group_size, grid, symmetric and skip"};
      }
      std::vector<std::string> known = linear_options();
      known.insert(known.end(), {"match", "skip"});
      const std::vector<std::string> nearest = nearest_words(key, known, 1);
      throw RecipeError{
          key, "is no key of an override" +
                   (nearest.empty() ? ": it has match, skip, bits, group_size, grid, symmetric"
                                    : " (did you mean " + in_quotes(nearest) + "?)")};
    }
    differs = true;
  }
  const auto skip = entry.find("skip");
  if (skip != entry.end() && !skip->is_boolean())
    throw RecipeError{"skip", "must be true or false"};
  const bool skips = skip != entry.end() && skip->get<bool>();
  if (skips && differs)
    throw RecipeError{"skip",
                      "leaves the linear as it is, and the other keys say how to change it"};
  if (skip == entry.end() && !differs)
    throw RecipeError{
        "", "says nothing beside `match`: give skip, bits, group_size, grid or symmetric"};
  if (skips) read.scheme = LinearScheme::original();
  if (differs) read.scheme = scheme_with(method, patched(options, entry, usual.grid), entry);
  return read;
}

LinearOverrides read_overrides(const std::string& method, const nlohmann::json& options,
                               const LinearScheme& usual, const nlohmann::json& entries) {
  if (!entries.is_array()) {
    throw RecipeError{"overrides", R"(must be a list, as in [{match: "*.down_proj", bits: 8}])"};
  }
  LinearOverrides overrides;
  for (const nlohmann::json& entry : entries) {
    const std::string place = fmt::format("overrides[{}]", overrides.size());
    try {
      overrides.push_back(read_override(method, options, usual, entry));
    } catch (const RecipeError& error) {
      throw RecipeError{error.key.empty() ? place : place + "." + error.key, error.what};
    }
  }
  return overrides;
}

// In the order of kOuterLinears.
std::vector<std::string> read_include(const Method& method, const nlohmann::json& given) {
  constexpr const char* kForm = "must be a list of lm_head and embed_tokens, as in [lm_head]";
  if (!given.is_array()) throw RecipeError{"include", kForm};
  for (const nlohmann::json& entry : given) {
    const auto known = [&](const char* name) { return entry == name; };
    if (std::ranges::none_of(kOuterLinears, known)) throw RecipeError{"include", kForm};
    if (const std::string why = method.cannot_include(entry.get<std::string>()); !why.empty())
      throw RecipeError{"include", in_quotes(entry.get<std::string>()) + ": " + why};
  }
  std::vector<std::string> include;
  for (const char* name : kOuterLinears) {
    const auto count = std::ranges::count(given, nlohmann::json(name));
    if (count > 1) throw RecipeError{"include", "names " + std::string(name) + " twice"};
    if (count == 1) include.emplace_back(name);
  }
  return include;
}

}  // namespace

bool Recipe::skips() const {
  return std::ranges::any_of(overrides, [](const LinearOverride& each) {
    return each.scheme && each.scheme->is_original();
  });
}

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
  nlohmann::json include = nlohmann::json::array();
  if (const auto given = options.find("include"); given != options.end()) {
    include = *given;
    options.erase(given);
  }
  nlohmann::json entries = nlohmann::json::array();
  if (const auto given = options.find("overrides"); given != options.end()) {
    entries = *given;
    options.erase(given);
  }
  OptionReader reader(options);
  const std::unique_ptr<Method> method = make_method(recipe.method, reader);
  reader.finish();
  recipe.options = reader.resolved();
  recipe.needs = method->needs();
  recipe.schemes = method->schemes();
  recipe.one_scheme_an_input = method->one_scheme_an_input();
  recipe.decides_schemes = recipe.schemes.size() > 1;
  recipe.include = read_include(*method, include);
  recipe.overrides = read_overrides(recipe.method, options, recipe.schemes.front(), entries);
  for (const LinearOverride& each : recipe.overrides) {
    if (!each.scheme || each.scheme->is_original()) continue;
    if (std::ranges::find(recipe.schemes, *each.scheme) == recipe.schemes.end())
      recipe.schemes.push_back(*each.scheme);
  }
  if (!named) {
    recipe.name = recipe.method + reader.name_suffix();
    for (const std::string& linear : recipe.include) recipe.name += "-" + linear;
    recipe.name += name_suffix(recipe.overrides);
  }
  check_name(recipe.name);
  return recipe;
}

nlohmann::json resolved(const Recipe& recipe) {
  nlohmann::json object = recipe.options.is_null() ? nlohmann::json::object() : recipe.options;
  if (!recipe.include.empty()) object["include"] = recipe.include;
  for (const LinearOverride& each : recipe.overrides) object["overrides"].push_back(each.given);
  object["name"] = recipe.name;
  object["method"] = recipe.method;
  return object;
}

}  // namespace roundhouse
