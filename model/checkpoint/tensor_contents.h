// What the tensors of a model hold, as hashes: learned as they are read, and compared whenever they
// are read again, so that a file that changes under a run is noticed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/tensor.h"

namespace roundhouse {

// A tensor is hashed in pieces of so many values, the last one shorter: so threads share it, and so do ranks that read a part each.
inline constexpr std::int64_t kPieceValues = std::int64_t{1} << 19;
struct Pieces {
  std::int64_t begin = 0, end = 0;
  std::int64_t count() const { return end - begin; }
};
Pieces pieces_of(std::int64_t values);  // one at least
// Of a tensor whose values take `each` bytes, in whatever memory.
template <class Byte>
std::span<Byte> bytes_of_pieces(std::span<Byte> tensor, std::size_t each, Pieces pieces) {
  const auto at = [&](std::int64_t piece) {
    return std::min(static_cast<std::size_t>(piece * kPieceValues) * each, tensor.size());
  };
  return tensor.subspan(at(pieces.begin), at(pieces.end) - at(pieces.begin));
}

// XXH3-128 of the tensor's type and shape and of the piece's bytes.
std::string hash_of_piece(const HostView& view, std::int64_t piece);
// A tensor's, by those of all its pieces: of a single one the same, of several the XXH3-128 of their digits.
std::string hash_of_pieces(std::span<const std::string> hashes);
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
