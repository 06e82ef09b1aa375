#include "model/checkpoint/load_weight.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "kernels/host_threads.h"

namespace roundhouse {
namespace {

// The largest magnitude as bits: without their sign, the bits of floats are ordered like the
// floats, NaN above infinity.
template <class Bits>
Bits largest_magnitude(std::span<const std::byte> bytes) {
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits largest = 0;
  for (std::size_t i = 0; i + sizeof(Bits) <= bytes.size(); i += sizeof(Bits)) {
    Bits bits;
    std::memcpy(&bits, bytes.data() + i, sizeof(Bits));
    largest = std::max(largest, static_cast<Bits>(bits & static_cast<Bits>(~kSign)));
  }
  return largest;
}

float largest_magnitude_of(DType type, std::span<const std::byte> bytes) {
  if (type == DType::kF32) return std::bit_cast<float>(largest_magnitude<std::uint32_t>(bytes));
  const auto bits = largest_magnitude<std::uint16_t>(bytes);
  return type == DType::kF16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

// That of several, of which each is infinite or NaN where it holds one.
void check_largest(std::span<const float> magnitudes, DType type, const std::string& where) {
  float largest = 0;
  for (const float magnitude : magnitudes) {
    if (!std::isfinite(magnitude)) throw InputError(where + ": holds NaN or an infinity");
    largest = std::max(largest, magnitude);
  }
  const bool overflows =
      (type == DType::kF16 && !std::isfinite(round_to_half(largest))) ||
      (type == DType::kBF16 && !std::isfinite(bfloat16_to_float(float_to_bfloat16(largest))));
  if (overflows) {
    throw InputError(fmt::format("{}: a value of {:f} is too large for {}", where, largest,
                                 torch_name_of(type)));
  }
}

}  // namespace

void check_values(const HostView& view, DType type, const std::string& where) {
  const float largest = largest_magnitude_of(view.type, view.bytes);
  check_largest({&largest, 1}, type, where);
}

std::vector<std::string> load_pieces(const Checkpoint& checkpoint, const std::string& name,
                                     const Shape& shape, Pieces pieces, Tensor& weight,
                                     Backend& backend) {
  const HostView view = checkpoint.weight(name, shape);
  const std::size_t each = size_of(view.type);
  std::vector<std::string> hashes(static_cast<std::size_t>(pieces.count()));
  std::vector<float> largest(hashes.size());
  on_host_threads(pieces.count(), [&](std::int64_t i) {
    const std::int64_t piece = pieces.begin + i;
    hashes[i] = hash_of_piece(view, piece);
    largest[i] =
        largest_magnitude_of(view.type, bytes_of_pieces(view.bytes, each, {piece, piece + 1}));
  });
  check_largest(largest, weight.type(), checkpoint.where(name));
  upload_values(bytes_of_pieces(view.bytes, each, pieces), view.type, backend, weight.type(),
                bytes_of_pieces(bytes_of(weight), size_of(weight.type()), pieces).data());
  backend.sync();
  release_mapped_pages(view.bytes);  // or the process would seem to grow with every block
  return hashes;
}

Tensor load_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape,
                   Backend& backend) {
  Tensor weight(backend, backend.activation_type(), shape.size() == 2 ? shape[0] : 1, shape.back());
  const std::vector<std::string> hashes =
      load_pieces(checkpoint, name, shape, pieces_of(element_count(shape)), weight, backend);
  checkpoint.note_content(name, hash_of_pieces(hashes));
  return weight;
}

Tensor constant_row(std::int64_t cols, float value, Backend& backend) {
  HostTensor row(DType::kF32, {cols});
  std::ranges::fill(row.as<float>(), value);
  Tensor tensor = Tensor::upload(backend, row.view(), backend.activation_type());
  backend.sync();  // the row ends here
  return tensor;
}

}  // namespace roundhouse
