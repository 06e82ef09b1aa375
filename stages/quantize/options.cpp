#include "stages/quantize/options.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>

#include <fmt/format.h>

namespace roundhouse {
namespace {

// Recipe names are folder names: lower case, words joined by hyphens.
std::string in_name(std::string text) {
  for (char& c : text) {
    c = c == '_' ? '-' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return text;
}

std::string suffix(const std::string& key, bool value) {
  return (value ? "-" : "-no-") + in_name(key);
}
std::string suffix(const std::string& key, const std::string& value) {
  return "-" + in_name(key) + "-" + in_name(value);
}
template <class Number>
std::string suffix(const std::string& key, Number value) {
  return suffix(key, nlohmann::json(value).dump());
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string text_of(double value) { return nlohmann::json(value).dump(); }

}  // namespace

OptionReader::OptionReader(const nlohmann::json& object) : object_(object) {
  if (!object.is_object() && !object.is_null()) {
    throw RecipeError{"", "options must be a set of keys and values"};
  }
}

const nlohmann::json* OptionReader::find(const std::string& key) {
  asked_.insert(key);
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

template <class T>
T OptionReader::keep(const std::string& key, T value, const T& fallback) {
  resolved_[key] = value;
  if (value != fallback) unusual_ += suffix(key, value);
  return value;
}

bool OptionReader::boolean(const std::string& key, bool fallback) {
  const nlohmann::json* given = find(key);
  if (given && !given->is_boolean()) throw RecipeError{key, "must be true or false"};
  return keep(key, given ? given->get<bool>() : fallback, fallback);
}

double OptionReader::number(const std::string& key, double fallback, double least, double most) {
  const nlohmann::json* given = find(key);
  if (!given) return keep(key, fallback, fallback);
  const double value = given->is_number() ? given->get<double>() : std::nan("");
  if (!(value >= least && value <= most)) {
    throw RecipeError{key, "must be a number from " + text_of(least) + " to " + text_of(most)};
  }
  return keep(key, value, fallback);
}

int OptionReader::integer(const std::string& key, int fallback, int least, int most) {
  const nlohmann::json* given = find(key);
  if (!given) return keep(key, fallback, fallback);
  // Compared as a double, which orders any integer that JSON can hold; exact for every int.
  const double value = given->is_number_integer() ? given->get<double>() : std::nan("");
  if (!(value >= least && value <= most)) {
    throw RecipeError{key, fmt::format("must be a whole number from {} to {}", least, most)};
  }
  return keep(key, static_cast<int>(value), fallback);
}

std::string OptionReader::one_of(const std::string& key, const std::string& fallback,
                                 const std::vector<std::string>& choices) {
  const nlohmann::json* given = find(key);
  if (!given) return keep(key, fallback, fallback);
  const std::string value = given->is_string() ? given->get<std::string>() : "";
  if (std::ranges::find(choices, value) == choices.end()) {
    throw RecipeError{key, "must be one of " + joined(choices)};
  }
  return keep(key, value, fallback);
}

std::string OptionReader::one_of(const std::string& key, const std::string& fallback,
                                 const std::vector<std::string>& choices,
                                 const std::string& if_true, const std::string& if_false) {
  const nlohmann::json* given = find(key);
  if (!given || !given->is_boolean()) return one_of(key, fallback, choices);
  return keep(key, given->get<bool>() ? if_true : if_false, fallback);
}

Grid OptionReader::grid(Grid fallback, Grid symmetric, const std::vector<Grid>& choices) {
  const nlohmann::json* grid_given = find("grid");
  const nlohmann::json* symmetric_given = find("symmetric");
  if (symmetric_given && !symmetric_given->is_boolean()) {
    throw RecipeError{"symmetric", "must be true or false"};
  }

  Grid grid = fallback;
  if (symmetric_given && symmetric_given->get<bool>() != is_symmetric(fallback)) {
    grid = symmetric_given->get<bool>()
               ? symmetric
               : *std::ranges::find_if_not(choices, [](Grid g) { return is_symmetric(g); });
  }
  if (grid_given) {
    std::vector<std::string> names;
    for (const Grid choice : choices) names.emplace_back(name_of(choice));
    const std::string name = grid_given->is_string() ? grid_given->get<std::string>() : "";
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) throw RecipeError{"grid", "must be one of " + joined(names)};
    grid = choices[found - names.begin()];
  }
  if (symmetric_given && symmetric_given->get<bool>() != is_symmetric(grid)) {
    throw RecipeError{"symmetric", "contradicts grid " + std::string(name_of(grid))};
  }

  // Both keys are written out, so that a resolved recipe reads back to itself however it was given.
  resolved_["grid"] = name_of(grid);
  resolved_["symmetric"] = is_symmetric(grid);
  if (grid == symmetric && grid != fallback) {
    unusual_ += "-symmetric";
  } else if (grid != fallback) {
    unusual_ += suffix("grid", std::string(name_of(grid)));
  }
  return grid;
}

std::int64_t OptionReader::whole(const std::string& key, std::int64_t fallback) {
  const nlohmann::json* given = find(key);
  if (given && !given->is_number_integer()) throw RecipeError{key, "must be a whole number"};
  const std::int64_t value = given ? given->get<std::int64_t>() : fallback;
  resolved_[key] = value;
  return value;
}

int OptionReader::bits(const std::vector<int>& choices) {
  const std::int64_t bits = whole("bits", 4);
  if (std::ranges::find(choices, bits) == choices.end()) {
    throw RecipeError{
        "bits", fmt::format("must be {} or {}", fmt::join(choices.begin(), choices.end() - 1, ", "),
                            choices.back())};
  }
  widths_ += fmt::format("-w{}", bits);
  return static_cast<int>(bits);
}

double OptionReader::average_bits(double least, double most) {
  const nlohmann::json* given = find("bits");
  const double bits = !given ? 4.0 : given->is_number() ? given->get<double>() : std::nan("");
  if (!(bits >= least && bits <= most)) {
    throw RecipeError{"bits", "must be a number from " + text_of(least) + " to " + text_of(most)};
  }
  resolved_["bits"] = bits;
  widths_ += fmt::format("-w{}", bits);
  return bits;
}

std::int64_t OptionReader::group_size() {
  const std::int64_t size = whole("group_size", 128);
  if (size != -1 && size < 1) {
    throw RecipeError{"group_size", "must be at least 1, or -1 for the whole row"};
  }
  if (size != -1) widths_ += fmt::format("g{}", size);
  return size;
}

Needs::Gradients OptionReader::gradients() {
  constexpr int kMost = 1'000'000;
  Needs::Gradients gradients{.samples = 100, .sequence_length = 512};
  group("gradients", [&](OptionReader& inner) {
    gradients.samples = inner.integer("samples", gradients.samples, 1, kMost);
    gradients.sequence_length =
        inner.integer("sequence_length", gradients.sequence_length, 2, kMost);
  });
  return gradients;
}

bool OptionReader::section(const std::string& key, bool fallback,
                           const std::function<void(OptionReader& inner)>& read) {
  const nlohmann::json* given = find(key);
  const bool on = !given ? fallback : given->is_boolean() ? given->get<bool>() : true;
  if (!on) {
    resolved_[key] = false;
    if (fallback) unusual_ += suffix(key, false);
    return false;
  }
  if (!fallback) unusual_ += suffix(key, true);
  group(key, read, fallback);
  return true;
}

void OptionReader::group(const std::string& key,
                         const std::function<void(OptionReader& inner)>& read, bool named) {
  const nlohmann::json* given = find(key);
  const nlohmann::json none = nlohmann::json::object();
  if (given && !given->is_object() && *given != true) {
    throw RecipeError{key, "must be a set of keys and values"};
  }
  OptionReader inner(given && given->is_object() ? *given : none);
  try {
    read(inner);
    inner.finish();
  } catch (const RecipeError& error) {
    throw RecipeError{key, error.key.empty() ? error.what : error.key + " " + error.what};
  }
  resolved_[key] = inner.resolved();
  if (inner.unusual_.empty()) return;
  unusual_ += (named ? "-" + in_name(key) : "") + inner.unusual_;
}

LinearScheme OptionReader::scheme(const std::vector<int>& bits_choices, Grid fallback,
                                  Grid symmetric, const std::vector<Grid>& grid_choices) {
  LinearScheme scheme;
  scheme.bits = bits(bits_choices);
  scheme.group_size = group_size();
  scheme.grid = grid(fallback, symmetric, grid_choices);
  return scheme;
}

void OptionReader::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (!asked_.contains(key)) throw RecipeError{key, "is not an option of this method"};
  }
}

}  // namespace roundhouse
