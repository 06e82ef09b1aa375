// What readers of the packed layouts take from a file: a field or an element at a time, from bytes that need not be aligned.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/dtype.h"
#include "base/tensor.h"

namespace roundhouse {

template <class T>
T stored_at(const HostView& view, std::int64_t index) {
  T value;
  std::memcpy(&value, view.bytes.data() + static_cast<std::size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

inline float stored_half(const HostView& view, std::int64_t index) {
  return half_to_float(stored_at<std::uint16_t>(view, index));
}

// Field `index` of a stream of `bits` each, lowest bits first, whose 32-bit words are elements first, first + stride, ... of the view.
inline int stored_field(const HostView& view, std::int64_t first, std::int64_t stride,
                        std::int64_t index, int bits) {
  const std::int64_t bit = index * bits, word = bit / 32;
  const int shift = static_cast<int>(bit % 32);
  std::uint64_t both = stored_at<std::uint32_t>(view, first + word * stride);
  if (shift + bits > 32)
    both |= std::uint64_t{stored_at<std::uint32_t>(view, first + (word + 1) * stride)} << 32;
  return static_cast<int>(both >> shift & ((std::uint64_t{1} << bits) - 1));
}

}  // namespace roundhouse
