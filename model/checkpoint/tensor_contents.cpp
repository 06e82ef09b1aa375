#include "model/checkpoint/tensor_contents.h"

#include <fmt/format.h>

#include "base/hash.h"

namespace roundhouse {

Pieces pieces_of(std::int64_t values) {
  return {0, std::max<std::int64_t>(1, (values + kPieceValues - 1) / kPieceValues)};
}

std::string hash_of_piece(const HostView& view, std::int64_t piece) {
  std::string head(name_of(view.type));
  for (const std::int64_t extent : view.shape) head += fmt::format(" {}", extent);
  head += "\n";
  Xxh3 hash;
  hash.update(std::as_bytes(std::span(head)));
  hash.update(bytes_of_pieces(view.bytes, size_of(view.type), {piece, piece + 1}));
  return hash.hex();
}

std::string hash_of_pieces(std::span<const std::string> hashes) {
  if (hashes.size() == 1) return hashes.front();
  Xxh3 hash;
  for (const std::string& piece : hashes) hash.update(std::as_bytes(std::span(piece)));
  return hash.hex();
}

std::string content_hash(const HostView& view) {
  std::vector<std::string> hashes;
  const Pieces all = pieces_of(element_count(view.shape));
  for (std::int64_t piece = all.begin; piece < all.end; ++piece)
    hashes.push_back(hash_of_piece(view, piece));
  return hash_of_pieces(hashes);
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
