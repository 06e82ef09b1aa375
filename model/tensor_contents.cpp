#include "model/tensor_contents.h"

#include "base/hash.h"

namespace roundhouse {

std::string content_hash(const HostView& view) {
  std::string head(name_of(view.type));
  for (const std::int64_t extent : view.shape) head += " " + std::to_string(extent);
  head += "\n";
  Xxh3 hash;
  hash.update(std::as_bytes(std::span(head)));
  hash.update(view.bytes);
  return hash.hex();
}

bool TensorContents::add(const std::string& tensor, const std::string& hash) {
  const std::lock_guard lock(mutex_);
  return hashes_.emplace(tensor, hash).first->second == hash;
}

std::optional<std::string> TensorContents::of(const std::string& tensor) const {
  const std::lock_guard lock(mutex_);
  const auto found = hashes_.find(tensor);
  if (found == hashes_.end()) return std::nullopt;
  return found->second;
}

std::map<std::string, std::string> TensorContents::all() const {
  const std::lock_guard lock(mutex_);
  return hashes_;
}

void TensorContents::clear() {
  const std::lock_guard lock(mutex_);
  hashes_.clear();
}

}  // namespace roundhouse
