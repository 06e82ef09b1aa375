#include "tests/support/memory_store.h"

#include "base/error.h"

namespace roundhouse {

void MemoryStore::commit(const std::string& key, const Record& record) {
  const std::lock_guard lock(mutex_);
  if (writes_until_failure_ == 1)
    throw Error("memory store: cannot write " + key + ": no space left (injected)");
  if (writes_until_failure_ > 1) --writes_until_failure_;
  records_[key] = record;
  damaged_.erase(key);
  reported_.erase(key);
  ++writes_;
}

std::optional<Record> MemoryStore::load(const std::string& key) {
  const std::lock_guard lock(mutex_);
  if (!has(key)) return std::nullopt;
  return records_.at(key);
}

std::optional<nlohmann::json> MemoryStore::attributes(const std::string& key) {
  const std::lock_guard lock(mutex_);
  if (!records_.contains(key)) return std::nullopt;
  if (!damaged_.contains(key)) return records_.at(key).attributes;
  if (reported_.insert(key).second && on_damage) on_damage(key, "damaged (injected)");
  return std::nullopt;
}

void MemoryStore::remove(const std::string& key) {
  const std::lock_guard lock(mutex_);
  records_.erase(key);
  damaged_.erase(key);
  reported_.erase(key);
}

std::vector<std::string> MemoryStore::keys(const std::string& folder) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> keys;
  for (const auto& [key, record] : records_) {
    if (key.starts_with(folder + "/")) keys.push_back(key);
  }
  return keys;
}

std::vector<std::string> MemoryStore::keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, record] : records_) keys.push_back(key);
  return keys;
}

}  // namespace roundhouse
