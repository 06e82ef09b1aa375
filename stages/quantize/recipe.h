// A recipe: a method with its settings, as in {method: gptq, bits: 4, group_size: 128}.
#pragma once

#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/block/model_units.h"
#include "model/quantized/linear_scheme.h"
#include "stages/quantize/linear_overrides.h"
#include "stages/quantize/needs.h"

namespace roundhouse {

inline constexpr const char* kDefaultCalibration = "default";

struct Recipe {
  std::string name;    // "gptq-w4g128": follows from the rest or given; fit to be a folder's name
  std::string method;  // a key of the table in methods.cpp
  nlohmann::json options;  // an object: all that the method takes, every option written out
  Needs needs;             // of the method with these options, as are:
  // All that a linear may become, but for staying as it is; at least one. First what the method itself makes of them.
  std::vector<LinearScheme> schemes;
  bool one_scheme_an_input = true;  // Method::one_scheme_an_input()
  // For messages, where it comes from a config: "run.yaml:7: recipes[0].bits" by key, and "run.yaml:6: recipes[0]" by "".
  std::map<std::string, std::string> where = {};
  std::string calibration = kDefaultCalibration;  // which of the run's calibration sets it looks at
  LinearOverrides overrides = {};
  bool decides_schemes = false;           // the method chooses among several schemes by itself
  std::vector<std::string> include = {};  // of kOuterLinears, in their order

  int units(int blocks) const { return unit_count(blocks, include); }
  bool skips() const;  // some linears stay as they are
};

// From an object with `method`, `name`, `include` (a list of kOuterLinears), `overrides` (linear_overrides.h) and the method's own keys.
// Completes the name: method, bits, group ("w4g128", "w4" for a whole row), then each option that differs from its default, as
// "-key-value", what is included, as "-lm_head", then "-overrides-HASH".
// Throws RecipeError for an unknown key or a value out of range.
Recipe parse_recipe(const nlohmann::json& object);

// Back to one object, with every option written out: what is hashed and written into the run. parse_recipe() reads it back to
// the same recipe.
nlohmann::json resolved(const Recipe& recipe);

// Knows which key is wrong, so that the config reader can add file and line.
struct RecipeError {
  std::string key;  // "bits", "overrides[1].bits"; empty: the recipe as a whole
  std::string what;
};

}  // namespace roundhouse
