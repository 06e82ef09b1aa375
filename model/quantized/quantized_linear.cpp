#include "model/quantized/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "base/error.h"

namespace roundhouse {
namespace {

Tensor upload_as_is(Backend& backend, const HostTensor& host, std::int64_t rows,
                    std::int64_t cols) {
  Tensor tensor(backend, host.type(), rows, cols);
  backend.upload(host.bytes(), tensor.view().data);
  return tensor;
}

}  // namespace

LinearScheme scheme_of(const QuantizedLinear& linear) {
  return {.bits = linear.bits,
          .group_size = linear.group_size,
          .grid = linear.grid,
          .reordered = linear.group_of_column.count() > 0};
}

void validate(const QuantizedLinear& q) {
  const auto check = [&](bool ok, const std::string& what) {
    if (!ok) throw Error("quantized linear " + q.name + ": " + what);
  };
  const auto check_tensor = [&](const HostTensor& tensor, DType type, const Shape& shape,
                                const char* name) {
    check(tensor.type() == type && tensor.shape() == shape,
          std::string(name) + " must be " + std::string(name_of(type)) + " of the right shape");
  };
  check(!q.name.empty(), "no name");
  check(q.bits >= 1 && q.bits <= 8, "bits must be 1 to 8");
  check(q.rows > 0 && q.cols > 0, "no rows or no columns");
  check(q.group_size > 0 && q.group_size <= q.cols,
        "group_size must be 1 to the number of columns");
  check_tensor(q.codes, DType::kU8, {q.rows, q.cols}, "codes");
  check_tensor(q.scales, DType::kF16, {q.rows, q.groups()}, "scales");
  check_tensor(q.zeros, DType::kU8, {q.rows, q.groups()}, "zeros");

  const int largest = (1 << q.bits) - 1;
  const auto within = [&](std::span<const std::uint8_t> values) {
    return values.empty() || *std::ranges::max_element(values) <= largest;
  };
  check(within(q.codes.as<std::uint8_t>()),
        "a code of more than " + std::to_string(q.bits) + " bits");
  check(within(q.zeros.as<std::uint8_t>()),
        "a zero point of more than " + std::to_string(q.bits) + " bits");
  if (is_symmetric(q.grid)) {
    const int middle = 1 << (q.bits - 1);
    check(std::ranges::all_of(q.zeros.as<std::uint8_t>(),
                              [&](std::uint8_t zero) { return zero == middle; }),
          "a symmetric grid whose zero point is not the middle");
  }
  check(std::ranges::all_of(q.scales.as<std::uint16_t>(),
                            [](std::uint16_t bits) {
                              const float scale = half_to_float(bits);
                              return std::isfinite(scale) && scale != 0.0f;
                            }),
        "a scale that is zero or not finite");
  if (q.group_of_column.count() > 0) {
    check_tensor(q.group_of_column, DType::kI32, {q.cols}, "group_of_column");
    check(std::ranges::all_of(q.group_of_column.as<std::int32_t>(),
                              [&](std::int32_t group) { return group >= 0 && group < q.groups(); }),
          "a column of a group that is not there");
  }
}

Tensor dequantize(const QuantizedLinear& q, Backend& backend) {
  const Tensor codes = upload_as_is(backend, q.codes, q.rows, q.cols);
  const Tensor zeros = upload_as_is(backend, q.zeros, q.rows, q.groups());
  const Tensor scales = Tensor::upload(backend, q.scales.view(), DType::kF32);
  const bool mapped = q.group_of_column.count() > 0;
  const Tensor map = mapped ? upload_as_is(backend, q.group_of_column, 1, q.cols) : Tensor();
  Tensor w(backend, backend.activation_type(), q.rows, q.cols);
  backend.dequantize({.codes = codes.view(),
                      .group_size = q.group_size,
                      .scales = scales.view(),
                      .zeros = zeros.view(),
                      .group_of_column = mapped ? map.view() : ConstMatrix(),
                      .w = w.view()});
  backend.sync();
  return w;
}

double bits_per_weight(const std::vector<QuantizedLinear>& linears) {
  double bits = 0, weights = 0;
  for (const QuantizedLinear& linear : linears) {
    const auto rows = static_cast<double>(linear.rows);
    const int group_bits = 16 + (is_symmetric(linear.grid) ? 0 : linear.bits);
    weights += rows * static_cast<double>(linear.cols);
    bits += rows * (static_cast<double>(linear.cols) * linear.bits +
                    static_cast<double>(linear.groups()) * group_bits);
  }
  return weights > 0 ? bits / weights : 0;
}

}  // namespace roundhouse
