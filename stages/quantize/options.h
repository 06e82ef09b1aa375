// Reads a method's options out of a JSON object: every key has a default and a check, unknown keys are errors, and what
// differs from its default goes into the recipe's name.
#pragma once

#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "stages/quantize/recipe.h"

namespace roundhouse {

class OptionReader {
 public:
  explicit OptionReader(const nlohmann::json& object);

  bool boolean(const std::string& key, bool fallback);
  double number(const std::string& key, double fallback, double least, double most);
  int integer(const std::string& key, int fallback, int least, int most);
  std::string one_of(const std::string& key, const std::string& fallback, const std::vector<std::string>& choices);

  // After the last option: throws RecipeError for a key that nothing asked for.
  void finish() const;
  // All options with their values; and the part of the recipe's name that the unusual ones make ("-symmetric", ...).
  const nlohmann::json& resolved() const { return resolved_; }
  const std::string& name_suffix() const { return name_suffix_; }

 private:
  template <class T>
  T keep(const std::string& key, T value, const T& fallback);
  const nlohmann::json& object_;
  std::set<std::string> asked_;
  nlohmann::json resolved_ = nlohmann::json::object();
  std::string name_suffix_;
};

}  // namespace roundhouse
