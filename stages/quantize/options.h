// Reads a method's options out of a JSON object: every key has a default and a check, unknown keys are errors, and what
// differs from its default goes into the recipe's name.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "kernels/grid.h"
#include "model/quantized/linear_scheme.h"
#include "stages/quantize/needs.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {

// Every getter throws RecipeError for a value of the wrong type or out of range.
class OptionReader {
 public:
  // `object` must outlive the reader; null counts as no options.
  explicit OptionReader(const nlohmann::json& object);

  bool boolean(const std::string& key, bool fallback);
  double number(const std::string& key, double fallback, double least, double most);
  int integer(const std::string& key, int fallback, int least, int most);
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices);
  // The same for an option that tools also know as on/off: true and false stand for these two choices.
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices, const std::string& if_true,
                     const std::string& if_false);
  // Two keys, one choice: `grid` (a name as in kernels/grid.h), and `symmetric: true` as short for grid `symmetric`, or
  // `symmetric: false` for the first other choice if the fallback is symmetric. It is an error if the two contradict each other.
  Grid grid(Grid fallback, Grid symmetric, const std::vector<Grid>& choices);
  // `bits` of a code, 4 unless given; and `group_size`, 128 unless given, -1 for the whole row. Both stand in the recipe's name as
  // "w4g128", or "w4" for a whole row, however usual they are.
  int bits(const std::vector<int>& choices);
  std::int64_t group_size();
  // `bits` as an average over a model, 4 unless given: "w2.6".
  double average_bits(double least, double most);
  // `gradients: {samples, sequence_length}`: what Needs::Gradients begins with.
  Needs::Gradients gradients();
  // A key that stands for a few others, or for true (all at their defaults) or false (not at all; `fallback` says which of the two
  // it is if it is not given): `read` asks for these. They stand in the name as "-key" and "-key-inner-value".
  bool section(const std::string& key, bool fallback,
               const std::function<void(OptionReader& inner)>& read);
  // Both and the grid, of a method whose linears are all coded alike.
  LinearScheme scheme(const std::vector<int>& bits_choices, Grid fallback, Grid symmetric,
                      const std::vector<Grid>& grid_choices);

  // After the last option: throws RecipeError for a key that nothing asked for.
  void finish() const;
  // All options with their values; and what they make of the recipe's name: the widths, then, by the order of the calls, what
  // is unusual: "-w4g128-symmetric", "-w4-no-true-sequential", "-w3g32-damping-0.05-act-order-none".
  const nlohmann::json& resolved() const { return resolved_; }
  std::string name_suffix() const { return widths_ + unusual_; }

 private:
  const nlohmann::json* find(const std::string& key);  // nullptr: not given
  void group(const std::string& key, const std::function<void(OptionReader& inner)>& read,
             bool named = true);
  std::int64_t whole(const std::string& key, std::int64_t fallback);
  template <class T>
  T keep(const std::string& key, T value, const T& fallback);

  const nlohmann::json& object_;
  std::set<std::string> asked_;
  nlohmann::json resolved_ = nlohmann::json::object();
  std::string widths_, unusual_;
};

}  // namespace roundhouse
