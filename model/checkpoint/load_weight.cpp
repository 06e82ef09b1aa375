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

// One thread hashes, which is in order, while the others look for the largest value.
void note_and_check(const Checkpoint& checkpoint, const std::string& name, const HostView& view,
                    DType type) {
  constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
  const std::size_t pieces = (view.bytes.size() + kPieceBytes - 1) / kPieceBytes;
  std::vector<float> largest(pieces);
  on_host_threads(static_cast<std::int64_t>(1 + pieces), [&](std::int64_t piece) {
    if (piece == 0) return checkpoint.note_content(name);
    const std::size_t at = static_cast<std::size_t>(piece - 1) * kPieceBytes;
    largest[piece - 1] = largest_magnitude_of(
        view.type, view.bytes.subspan(at, std::min(kPieceBytes, view.bytes.size() - at)));
  });
  check_largest(largest, type, checkpoint.where(name));
}

}  // namespace

void check_values(const HostView& view, DType type, const std::string& where) {
  const float largest = largest_magnitude_of(view.type, view.bytes);
  check_largest({&largest, 1}, type, where);
}

Tensor load_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape,
                   Backend& backend) {
  const HostView view = checkpoint.weight(name, shape);
  note_and_check(checkpoint, name, view, backend.activation_type());
  Tensor weight = Tensor::upload(backend, view, backend.activation_type());
  backend.sync();
  release_mapped_pages(view.bytes);  // or the process would seem to grow with every block
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
