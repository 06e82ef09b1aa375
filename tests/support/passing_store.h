// A store that passes all on to another one: what a test watches or holds up, it overrides.
#pragma once

#include "stages/store/run_store.h"

namespace roundhouse {

class PassingStore : public RunStore {
 public:
  explicit PassingStore(RunStore& inner) : inner_(inner) {}
  void commit(const std::string& key, const Record& record) override { inner_.commit(key, record); }
  std::optional<Record> load(const std::string& key) override { return inner_.load(key); }
  std::optional<nlohmann::json> attributes(const std::string& key) override {
    return inner_.attributes(key);
  }
  bool whole(const std::string& key) override { return inner_.whole(key); }
  bool known_whole(const std::string& key) const override { return inner_.known_whole(key); }
  void doubt(const std::string& key) override { inner_.doubt(key); }
  void remove(const std::string& key) override { inner_.remove(key); }
  std::vector<std::string> keys(const std::string& folder) override { return inner_.keys(folder); }
  std::uint64_t bytes(const std::string& key) override { return inner_.bytes(key); }
  void expect(const std::string& key, std::uint64_t length) override { inner_.expect(key, length); }

 private:
  RunStore& inner_;
};

}  // namespace roundhouse
