// A run store in memory, for tests and small tools: the contract of run_store.h, and faults on
// demand.
#pragma once

#include <mutex>
#include <set>
#include <vector>

#include "stages/store/run_store.h"

namespace roundhouse {

class MemoryStore final : public RunStore {
 public:
  void commit(const std::string& key, const Record& record) override;
  std::optional<Record> load(const std::string& key) override;
  std::optional<nlohmann::json> attributes(const std::string& key) override;
  void remove(const std::string& key) override;
  std::vector<std::string> keys(const std::string& folder) override;
  std::uint64_t bytes(const std::string& key) override {
    const std::lock_guard lock(mutex_);
    return records_.contains(key) ? 1 : 0;
  }
  void expect(const std::string&, std::uint64_t) override {}

  // The n-th commit from now (1: the next) throws Error and every later one too, as on a full disk;
  // 0: none does.
  void fail_at_write(int n) { writes_until_failure_ = n; }
  int writes() const { return writes_; }  // commits that succeeded
  // From now on the record counts as damaged, until it is committed anew.
  void damage(const std::string& key) { damaged_.insert(key); }
  std::vector<std::string> keys() const;

 private:
  std::recursive_mutex mutex_;  // a walk writes from two threads
  std::map<std::string, Record> records_;
  std::set<std::string> damaged_;
  std::set<std::string> reported_;  // damage that on_damage was told of
  int writes_until_failure_ = 0;
  int writes_ = 0;
};

}  // namespace roundhouse
