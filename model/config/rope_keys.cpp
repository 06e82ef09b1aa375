#include "model/config/rope_keys.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/quote.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using Scaling = RopeConfig::Scaling;

constexpr double kSmallestTheta = 1.0, kLargestTheta = 1e12;
constexpr double kMostFactor = 1e6;  // of whatever scales
constexpr const char* kOriginalPositions = "original_max_position_embeddings";

struct Type {
  std::string_view name;
  Scaling scaling;
  std::vector<std::string_view> keys;  // besides those that all have
};
const std::array<Type, 7>& types() {
  static const std::array<Type, 7> kTypes = {{
      {"default", Scaling::kNone, {}},
      {"linear", Scaling::kLinear, {"factor"}},
      {"dynamic", Scaling::kDynamic, {"factor", kOriginalPositions}},
      {"llama3",
       Scaling::kLlama3,
       {"factor", "low_freq_factor", "high_freq_factor", kOriginalPositions}},
      {"yarn",
       Scaling::kYarn,
       {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate", kOriginalPositions}},
      {"longrope",
       Scaling::kLongRope,
       {"factor", "attention_factor", "long_factor", "short_factor", kOriginalPositions}},
      {"su",  // what Phi-3's first configs call it
       Scaling::kLongRope,
       {"factor", "attention_factor", "long_factor", "short_factor", kOriginalPositions}},
  }};
  return kTypes;
}
constexpr const char* kSupported = "default, linear, dynamic, llama3, yarn and longrope are";

const Type& type_of(const ConfigKeys& rope) {
  const Type* found = nullptr;
  for (const char* key : {"rope_type", "type"}) {
    const std::optional<std::string> name = rope.string(key);
    if (!name) continue;
    const auto* type = std::ranges::find(types(), *name, &Type::name);
    if (type == types().end()) rope.refuse(key, kSupported);
    if (found != nullptr && found->scaling != type->scaling)
      rope.fail(key, in_quotes(*name) + " contradicts rope_type");
    found = type;
  }
  return found == nullptr ? types().front() : *found;
}

std::vector<double> factors(const ConfigKeys& rope, const char* key, std::int64_t columns) {
  const json* list = rope.find(key);
  const auto pairs = static_cast<std::size_t>(columns / 2);
  if (list == nullptr || !list->is_array() || list->size() != pairs)
    rope.fail(key, fmt::format("must be a list of {} numbers, half of the rotated columns", pairs));
  std::vector<double> values;
  for (const json& value : *list) values.push_back(rope.number(key, value, 1e-6, kMostFactor));
  return values;
}

// What YaRN scales attention by, for texts that are so many times longer.
double yarn_magnitude(double factor, double scale = 1.0) {
  return factor <= 1.0 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

void read_scaling(const ConfigKeys& rope, std::int64_t max_positions, RopeConfig& config) {
  const double longer =
      static_cast<double>(max_positions) / static_cast<double>(config.original_positions);
  const auto magnitude_or = [&](double absent) {
    return rope.number_at("attention_factor", 1e-3, 1e3, absent);
  };
  switch (config.scaling) {
    case Scaling::kNone:
      return;
    case Scaling::kLinear:
    case Scaling::kDynamic:
      config.factor = rope.number_at("factor", 1.0, kMostFactor);
      return;
    case Scaling::kLlama3:
      config.factor = rope.number_at("factor", 1.0, kMostFactor);
      config.low_frequency_factor = rope.number_at("low_freq_factor", 1e-6, kMostFactor);
      config.high_frequency_factor = rope.number_at("high_freq_factor", 1e-6, kMostFactor);
      if (config.high_frequency_factor <= config.low_frequency_factor)
        rope.fail("high_freq_factor", "must be larger than low_freq_factor");
      return;
    case Scaling::kYarn: {
      config.factor = rope.number_at("factor", 1.0, kMostFactor, std::max(1.0, longer));
      config.beta_fast = rope.number_at("beta_fast", 1e-6, kMostFactor, 32.0);
      config.beta_slow = rope.number_at("beta_slow", 1e-6, kMostFactor, 1.0);
      config.ramp_of_whole_pairs = rope.boolean("truncate", true);
      const double scale = rope.number_at("mscale", 0.0, kMostFactor, 0.0);
      const double scale_of_all = rope.number_at("mscale_all_dim", 0.0, kMostFactor, 0.0);
      config.magnitude = magnitude_or(scale > 0.0 && scale_of_all > 0.0
                                          ? yarn_magnitude(config.factor, scale) /
                                                yarn_magnitude(config.factor, scale_of_all)
                                          : yarn_magnitude(config.factor));
      return;
    }
    case Scaling::kLongRope:
      if (config.original_positions < 2) rope.fail(kOriginalPositions, "must be larger than 1");
      config.short_factors = factors(rope, "short_factor", config.columns);
      config.long_factors = factors(rope, "long_factor", config.columns);
      config.factor = rope.number_at("factor", 1e-6, kMostFactor, longer);
      config.magnitude = magnitude_or(
          config.factor <= 1.0
              ? 1.0
              : std::sqrt(1.0 + std::log(config.factor) /
                                    std::log(static_cast<double>(config.original_positions))));
      return;
  }
}

// Of the columns of a head.
std::int64_t rotated_columns(const ConfigKeys& keys, std::int64_t head_dim, bool may_be_partial,
                             std::optional<std::int64_t> absent) {
  constexpr const char* kKey = "partial_rotary_factor";
  const json* value = keys.find(kKey);
  if (value == nullptr) return absent.value_or(head_dim);
  const double share = keys.number(kKey, *value, 0.0, 1.0);
  if (share != 1.0 && !may_be_partial) keys.refuse(kKey, "this architecture rotates whole heads");
  const auto columns = static_cast<std::int64_t>(static_cast<double>(head_dim) * share);
  if (columns < 2 || columns % 2 != 0)
    keys.fail(kKey, fmt::format("makes {} of {} columns, which are no pairs", columns, head_dim));
  return columns;
}

// An object within the config, and the key that it stands at.
using RopeObjects = std::vector<std::pair<const char*, ConfigKeys>>;

// `theta_key` stands beside the objects, "rope_theta" in them.
RopeConfig read_rope_objects(const ConfigKeys& keys, const char* theta_key,
                             const RopeObjects& objects, std::int64_t head_dim,
                             std::int64_t max_positions, const RopeDefaults& defaults) {
  std::optional<double> theta;
  const auto read_theta = [&](const ConfigKeys& from, const char* key) {
    const json* value = from.find(key);
    if (value == nullptr) return;
    const double read = from.number(key, *value, kSmallestTheta, kLargestTheta);
    if (theta && *theta != read) from.fail(key, "contradicts another " + std::string(theta_key));
    theta = read;
  };
  read_theta(keys, theta_key);
  RopeConfig config;
  config.columns = rotated_columns(keys, head_dim, defaults.may_be_partial, std::nullopt);
  std::optional<RopeConfig> scaled;
  for (const auto& [key, rope] : objects) {
    const Type& type = type_of(rope);
    RopeConfig read = config;
    read.scaling = type.scaling;
    for (const auto& [name, value] : rope.object().items()) {
      constexpr std::array<std::string_view, 4> kOfAll = {"rope_type", "type", "rope_theta",
                                                          "partial_rotary_factor"};
      if (value.is_null() || std::ranges::find(kOfAll, name) != kOfAll.end()) continue;
      if (std::ranges::find(type.keys, name) == type.keys.end())
        rope.refuse(name, "rope type " + in_quotes(std::string(type.name)) + " has no such key");
    }
    read_theta(rope, "rope_theta");
    read.columns = rotated_columns(rope, head_dim, defaults.may_be_partial, read.columns);
    if (read.scaling != Scaling::kNone) {
      // What stands beside the object goes first.
      read.original_positions = keys.size(
          kOriginalPositions, ConfigKeys::kMostPositions,
          rope.size(kOriginalPositions, ConfigKeys::kMostPositions,
                    defaults.original_positions > 0 ? defaults.original_positions : max_positions));
      read_scaling(rope, max_positions, read);
    }
    if (scaled && *scaled != read) keys.fail(key, "contradicts rope_scaling");
    scaled = std::move(read);
  }
  if (scaled) config = std::move(*scaled);
  config.theta = theta.value_or(defaults.theta);
  if (config.scaling == Scaling::kYarn && config.theta <= kSmallestTheta)
    keys.fail("rope_theta", "must be larger than 1 where yarn scales its frequencies");
  return config;
}

}  // namespace

RopeConfig read_rope(const ConfigKeys& keys, std::int64_t head_dim, std::int64_t max_positions,
                     const RopeDefaults& defaults) {
  RopeObjects objects;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (std::optional<ConfigKeys> rope = keys.within(key)) objects.emplace_back(key, *rope);
  }
  return read_rope_objects(keys, "rope_theta", objects, head_dim, max_positions, defaults);
}

RopeConfig read_rope_of_type(const ConfigKeys& keys, const RopeOfType& of, std::int64_t head_dim,
                             std::int64_t max_positions, const RopeDefaults& defaults) {
  constexpr std::string_view kFull = "full_attention", kSliding = "sliding_attention";
  RopeObjects objects;
  if (of.type == kFull) {
    if (std::optional<ConfigKeys> rope = keys.within("rope_scaling"))
      objects.emplace_back("rope_scaling", *rope);
  }
  if (const std::optional<ConfigKeys> types = keys.within("rope_parameters")) {
    for (const auto& [name, value] : types->object().items()) {
      if (name != kFull && name != kSliding)
        types->refuse(name, "this architecture has an object for each type of layer, " +
                                std::string(kFull) + " and " + std::string(kSliding));
    }
    if (std::optional<ConfigKeys> rope = types->within(of.type))
      objects.emplace_back("rope_parameters", *rope);
  }
  return read_rope_objects(keys, of.theta, objects, head_dim, max_positions, defaults);
}

}  // namespace roundhouse
