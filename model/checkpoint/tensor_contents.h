// What the tensors of a model hold, as hashes: learned as they are read, and compared whenever they
// are read again, so that a file that changes under a run is noticed.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace roundhouse {

// XXH3-128 of type, shape and bytes.
std::string content_hash(const HostView& view);

// By tensor name. Threads may share it.
class TensorContents {
 public:
  // Makes room for these. What is learned between the large buffers of one block and the next, and kept, would else lie in the
  // holes that they leave on the heap, which then grows with every block.
  void expect(const std::vector<std::string>& tensors);
  // Learns the hash of a tensor. False if it is known by another, which stays.
  [[nodiscard]] bool add(const std::string& tensor, const std::string& hash);
  std::optional<std::string> of(const std::string& tensor) const;  // nothing: not known yet
  std::map<std::string, std::string> all() const;
  void clear();

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::string> hashes_;  // empty: not known yet
};

}  // namespace roundhouse
