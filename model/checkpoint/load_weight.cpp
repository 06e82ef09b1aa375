#include "model/checkpoint/load_weight.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"

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

float largest_magnitude_of(const HostView& view) {
  if (view.type == DType::kF32)
    return std::bit_cast<float>(largest_magnitude<std::uint32_t>(view.bytes));
  const auto bits = largest_magnitude<std::uint16_t>(view.bytes);
  return view.type == DType::kF16 ? half_to_float(bits) : bfloat16_to_float(bits);
}

}  // namespace

void check_values(const HostView& view, DType type, const std::string& where) {
  const float largest = largest_magnitude_of(view);
  if (!std::isfinite(largest)) throw InputError(where + ": holds NaN or an infinity");
  const bool overflows =
      (type == DType::kF16 && !std::isfinite(round_to_half(largest))) ||
      (type == DType::kBF16 && !std::isfinite(bfloat16_to_float(float_to_bfloat16(largest))));
  if (overflows) {
    throw InputError(where + ": a value of " + std::to_string(largest) + " is too large for " +
                     std::string(torch_name_of(type)));
  }
}

Tensor load_weight(const Checkpoint& checkpoint, const std::string& name, const Shape& shape,
                   Backend& backend) {
  const HostView view = checkpoint.weight(name, shape);
  checkpoint.note_content(name);
  check_values(view, backend.activation_type(), checkpoint.where(name));
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
