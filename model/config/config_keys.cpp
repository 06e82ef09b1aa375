#include "model/config/config_keys.h"

#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/quote.h"

namespace roundhouse {

using nlohmann::json;

ConfigKeys::ConfigKeys(std::filesystem::path file, json object, std::string prefix)
    : file_(std::move(file)), object_(std::move(object)), prefix_(std::move(prefix)) {
  if (!object_.is_object()) throw InputError(file_.string() + ": not a JSON object");
}

void ConfigKeys::fail(const std::string& key, const std::string& what) const {
  throw InputError(file_.string() + ": " + printable(prefix_ + key, 200) + ": " + what);
}

void ConfigKeys::refuse(const std::string& key, const std::string& why) const {
  constexpr std::size_t kMost = 200;
  std::string value = object_.at(key).dump(-1, ' ', true);
  if (value.size() > kMost) value = value.substr(0, kMost) + "...";
  fail(key, value + " is not supported (" + why + ")");
}

const json* ConfigKeys::find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<ConfigKeys> ConfigKeys::within(const std::string& key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) fail(key, "must be null or an object");
  return ConfigKeys(file_, *value, prefix_ + key + ".");
}

std::int64_t ConfigKeys::integer(const std::string& key, const json& value, std::int64_t low,
                                 std::int64_t high) const {
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() ||
                     value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)) &&
                    value.get<std::int64_t>() >= low && value.get<std::int64_t>() <= high;
  if (!fits) fail(key, fmt::format("must be an integer from {} to {}", low, high));
  return value.get<std::int64_t>();
}

std::int64_t ConfigKeys::size(const std::string& key, std::int64_t high,
                              std::optional<std::int64_t> absent_value) const {
  const json* value = find(key);
  if (value != nullptr) return integer(key, *value, 1, high);
  if (!absent_value) fail(key, "is missing");
  return *absent_value;
}

double ConfigKeys::number(const std::string& key, const json& value, double low,
                          double high) const {
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    fail(key, "must be a number from " + json(low).dump() + " to " + json(high).dump());
  }
  return value.get<double>();
}

double ConfigKeys::number_at(const std::string& key, double low, double high,
                             std::optional<double> absent_value) const {
  const json* value = find(key);
  if (value != nullptr) return number(key, *value, low, high);
  if (!absent_value) fail(key, "is missing");
  return *absent_value;
}

bool ConfigKeys::boolean(const std::string& key, bool absent_value) const {
  const json* value = find(key);
  if (value == nullptr) return absent_value;
  if (!value->is_boolean()) fail(key, "must be true or false");
  return value->get<bool>();
}

std::optional<std::string> ConfigKeys::string(const std::string& key) const {
  const json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) fail(key, "must be a string");
  return value->get<std::string>();
}

}  // namespace roundhouse
