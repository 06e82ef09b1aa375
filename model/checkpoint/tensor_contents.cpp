#include "model/checkpoint/tensor_contents.h"

#include <fmt/format.h>

#include "base/hash.h"

namespace roundhouse {

std::string content_hash(const HostView& view) {
  std::string head(name_of(view.type));
  for (const std::int64_t extent : view.shape) head += fmt::format(" {}", extent);
  head += "\n";
  Xxh3 hash;
  hash.update(std::as_bytes(std::span(head)));
  hash.update(view.bytes);
  return hash.hex();
}

void TensorContents::expect(const std::vector<std::string>& tensors) {
  constexpr std::size_t kDigits = 32;
  const std::lock_guard lock(mutex_);
  for (const std::string& tensor : tensors) hashes_[tensor].reserve(kDigits);
}

bool TensorContents::add(const std::string& tensor, const std::string& hash) {
  const std::lock_guard lock(mutex_);
  std::string& known = hashes_[tensor];
  if (known.empty()) known = hash;
  return known == hash;
}

std::optional<std::string> TensorContents::of(const std::string& tensor) const {
  const std::lock_guard lock(mutex_);
  const auto found = hashes_.find(tensor);
  if (found == hashes_.end() || found->second.empty()) return std::nullopt;
  return found->second;
}

std::map<std::string, std::string> TensorContents::all() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::string> known;
  for (const auto& [tensor, hash] : hashes_) {
    if (!hash.empty()) known.emplace(tensor, hash);
  }
  return known;
}

void TensorContents::clear() {
  const std::lock_guard lock(mutex_);
  for (auto& [tensor, hash] : hashes_) hash.clear();
}

}  // namespace roundhouse
