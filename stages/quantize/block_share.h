// What recipes that go through a block one after the other make alike, kept for those that come later: by a key that says all that it
// depends on beside the block and its original input. Never in the way of a result: whoever finds nothing makes it.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

namespace roundhouse {

class BlockShare {
 public:
  // What stands under the key, which is made if there is nothing yet. A key names its type.
  template <class T>
  const T& get(const std::string& key, const std::function<T()>& make) {
    std::shared_ptr<void>& entry = entries_[key];
    if (!entry) entry = std::make_shared<T>(make());
    return *static_cast<const T*>(entry.get());
  }
  void clear() { entries_.clear(); }

 private:
  std::map<std::string, std::shared_ptr<void>> entries_;
};

}  // namespace roundhouse
