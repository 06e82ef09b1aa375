#include "base/tensor.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {

std::int64_t element_count(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size < 0) throw Error(fmt::format("a tensor has a negative size: {}", size));
    if (__builtin_mul_overflow(count, size, &count)) {
      throw Error("a tensor has more elements than 64 bits can count");
    }
  }
  return count;
}

HostTensor::HostTensor(DType type, Shape shape) : type_(type), shape_(std::move(shape)) {
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(element_count(shape_), static_cast<std::int64_t>(size_of(type)),
                             &bytes)) {
    throw Error("a tensor has more bytes than 64 bits can count");
  }
  bytes_.resize(static_cast<std::size_t>(bytes));
}

HostTensor HostTensor::from(const HostView& view) {
  HostTensor tensor(view.type, view.shape);
  if (view.bytes.size() != tensor.bytes_.size()) {
    throw Error(fmt::format("a tensor's shape wants {} bytes, but there are {}",
                            tensor.bytes_.size(), view.bytes.size()));
  }
  std::ranges::copy(view.bytes, tensor.bytes_.begin());
  return tensor;
}

}  // namespace roundhouse
