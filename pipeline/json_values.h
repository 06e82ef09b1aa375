// Members of a line of the journal, whatever it holds: people edit such files, and a number that is not finite is null in JSON.
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

// "" unless it is a text.
inline std::string text_in(const nlohmann::json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// The texts of a list, other values left out; empty unless it is one.
inline std::vector<std::string> texts_in(const nlohmann::json& object, const char* key) {
  std::vector<std::string> texts;
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || !found->is_array()) return texts;
  for (const nlohmann::json& value : *found) {
    if (value.is_string()) texts.push_back(value.get<std::string>());
  }
  return texts;
}

// 0 where there is none, NaN where it is no number.
inline double number_in(const nlohmann::json& object, const char* key) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end()) return 0;
  return found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

// `fallback` unless it is a whole number of up to a million.
inline int integer_in(const nlohmann::json& object, const char* key, int fallback) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (found == object.end() || !found->is_number_integer()) return fallback;
  const double value = found->get<double>();
  return std::abs(value) <= 1e6 ? static_cast<int>(value) : fallback;
}

}  // namespace roundhouse
