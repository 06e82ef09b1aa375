// Tensors in host memory: what is read from files, written to files and sent between ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/dtype.h"

namespace roundhouse {

using Shape = std::vector<std::int64_t>;

// Product of the sizes; 1 for a scalar. Throws Error on a negative size or overflow.
std::int64_t element_count(const Shape& shape);

// Borrowed, row-major, possibly unaligned (a view into a mapped file).
struct HostView {
  DType type = DType::kF32;
  Shape shape;
  std::span<const std::byte> bytes;
};

// Owned, row-major.
class HostTensor {
 public:
  HostTensor() = default;
  HostTensor(DType type, Shape shape);  // zeros
  static HostTensor from(const HostView& view);

  DType type() const { return type_; }
  const Shape& shape() const { return shape_; }
  std::int64_t count() const { return element_count(shape_); }
  std::span<std::byte> bytes() { return bytes_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  HostView view() const { return {type_, shape_, bytes_}; }

  // The elements as T; T must have the size of the type (std::uint16_t for the 16-bit floats).
  template <class T>
  std::span<T> as() {
    return {reinterpret_cast<T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }
  template <class T>
  std::span<const T> as() const {
    return {reinterpret_cast<const T*>(bytes_.data()), bytes_.size() / sizeof(T)};
  }

 private:
  DType type_ = DType::kF32;
  Shape shape_{0};
  std::vector<std::byte> bytes_;
};

}  // namespace roundhouse
