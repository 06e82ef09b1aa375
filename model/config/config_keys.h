// The keys of a config.json. In Hugging Face configs null means the same as absence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

class ConfigKeys {
 public:
  // Bounds that no model comes near and that keep every product of two sizes well inside 64 bits.
  static constexpr std::int64_t kMostSize = std::int64_t{1} << 24;
  static constexpr std::int64_t kMostPositions = 0x7fffffff;

  // Of an object within a config, keys are called by their path: `prefix` is "rope_scaling.".
  ConfigKeys(std::filesystem::path file, nlohmann::json object, std::string prefix = "");

  // Every error is an InputError that names the file and the key.
  [[noreturn]] void fail(const std::string& key, const std::string& what) const;
  // The same with the key's value in front: KEY: VALUE is not supported (WHY).
  [[noreturn]] void refuse(const std::string& key, const std::string& why) const;

  bool absent(const std::string& key) const { return !object_.contains(key); }
  const nlohmann::json* find(const std::string& key) const;
  const nlohmann::json& object() const { return object_; }
  // The keys of the object at `key`; nothing if it is absent.
  std::optional<ConfigKeys> within(const std::string& key) const;

  std::int64_t integer(const std::string& key, const nlohmann::json& value, std::int64_t low,
                       std::int64_t high) const;
  // From 1 on. Without `absent_value` the key must be there.
  std::int64_t size(const std::string& key, std::int64_t high = kMostSize,
                    std::optional<std::int64_t> absent_value = std::nullopt) const;
  double number(const std::string& key, const nlohmann::json& value, double low, double high) const;
  double number_at(const std::string& key, double low, double high,
                   std::optional<double> absent_value = std::nullopt) const;
  bool boolean(const std::string& key, bool absent_value) const;
  std::optional<std::string> string(const std::string& key) const;

 private:
  std::filesystem::path file_;
  nlohmann::json object_;
  std::string prefix_;
};

}  // namespace roundhouse
