#include "model/quantized/quantized_linear.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "model/quantized/validation.h"

namespace roundhouse {
namespace {

Tensor upload_as_is(Backend& backend, const HostTensor& host, std::int64_t rows,
                    std::int64_t cols) {
  Tensor tensor(backend, host.type(), rows, cols);
  backend.upload(host.bytes(), tensor.view().data);
  return tensor;
}

Tensor dequantize_table(const QuantizedLinear& q, Backend& backend) {
  const Tensor codes = upload_as_is(backend, q.codes, q.rows, q.cols);
  const Tensor tables = Tensor::upload(backend, q.table.view(), DType::kF32);
  Tensor starts, columns, values;
  SparseRows sparse;
  if (q.sparse.entries() > 0) {
    starts = upload_as_is(backend, q.sparse.offsets, 1, q.rows + 1);
    columns = upload_as_is(backend, q.sparse.columns, 1, q.sparse.entries());
    values = Tensor::upload(backend, q.sparse.values.view(), DType::kF32);
    sparse = {std::as_const(starts).view(), std::as_const(columns).view(),
              std::as_const(values).view()};
  }
  Tensor w(backend, backend.activation_type(), q.rows, q.cols);
  backend.dequantize_table(
      {.codes = codes.view(), .tables = tables.view(), .sparse = sparse, .w = w.view()});
  backend.sync();
  return w;
}

// By the host, row by row: a uniform grid with a sparse part, for which there is no kernel.
Tensor dequantize_on_host(const QuantizedLinear& q, Backend& backend) {
  // Bands of about 64 MB, so that a linear of the largest models is not held in float32 as a whole.
  const std::int64_t band = std::max<std::int64_t>(1, (std::int64_t{1} << 24) / q.cols);
  Tensor w(backend, backend.activation_type(), q.rows, q.cols);
  DequantizedRows rows(q);
  for (std::int64_t first = 0; first < q.rows; first += band) {
    const std::int64_t end = std::min(q.rows, first + band);
    HostTensor values(DType::kF32, {end - first, q.cols});
    const std::span<float> out = values.as<float>();
    for (std::int64_t row = first; row < end; ++row) {
      std::ranges::copy(rows.values(row), out.begin() + (row - first) * q.cols);
    }
    const Tensor part = Tensor::upload(backend, values.view(), w.type());
    backend.copy(part.view(), w.view().row_range(first, end));
    backend.sync();  // `values` ends here
  }
  return w;
}

}  // namespace

void validate(const QuantizedLinear& q) {
  if (!q.original && q.bits >= 1 && q.bits <= 8 && q.codes.type() == DType::kU8) {
    const int largest = (1 << q.bits) - 1;
    const std::span<const std::uint8_t> codes = q.codes.as<std::uint8_t>();
    if (!codes.empty() && *std::ranges::max_element(codes) > largest) throw_code_out_of_range(q);
  }
  validate_beside_codes(q);
}

void throw_code_out_of_range(const QuantizedLinear& q) {
  throw Error(fmt::format("quantized linear {}: a code of more than {} bits", q.name, q.bits));
}

void validate_beside_codes(const QuantizedLinear& q) {
  const auto check = [&](bool ok, const std::string& what) {
    if (!ok) throw Error("quantized linear " + q.name + ": " + what);
  };
  const auto check_tensor = [&](const HostTensor& tensor, DType type, const Shape& shape,
                                const char* name) {
    check(tensor.type() == type && tensor.shape() == shape,
          std::string(name) + " must be " + std::string(name_of(type)) + " of the right shape");
  };
  check(!q.name.empty(), "no name");
  if (q.original) {
    check(q.rows > 0 && q.cols > 0, "no rows or no columns");
    check(q.codes.count() == 0 && q.scales.count() == 0 && q.zeros.count() == 0 && !q.has_table() &&
              q.group_of_column.count() == 0 && q.sparse.empty(),
          "codes of a linear that is left as it is");
    return;
  }
  check(q.bits >= 1 && q.bits <= 8, "bits must be 1 to 8");
  check(q.rows > 0 && q.cols > 0, "no rows or no columns");
  check(q.group_size > 0 && q.group_size <= q.cols,
        "group_size must be 1 to the number of columns");
  check_tensor(q.codes, DType::kU8, {q.rows, q.cols}, "codes");
  const int largest = (1 << q.bits) - 1;
  const auto within = [&](std::span<const std::uint8_t> values) {
    return values.empty() || *std::ranges::max_element(values) <= largest;
  };
  check(!q.sparse.empty() || (q.sparse.columns.count() == 0 && q.sparse.values.count() == 0),
        "a sparse part without offsets");
  try {
    if (!q.sparse.empty()) validate(q.sparse, q.rows, q.cols);
  } catch (const Error& error) {
    check(false, error.what());
  }

  if (q.has_table()) {
    check(q.bits >= 2 && q.bits <= 4, "a lookup table is of 2, 3 or 4 bits");
    check_tensor(q.table, DType::kF16, {q.rows, std::int64_t{1} << q.bits}, "table");
    check(
        std::ranges::all_of(q.table.as<std::uint16_t>(),
                            [](std::uint16_t bits) { return std::isfinite(half_to_float(bits)); }),
        "a value of its table that is not finite");
    check(q.group_size == q.cols && q.scales.count() == 0 && q.zeros.count() == 0 &&
              q.group_of_column.count() == 0,
          "a lookup table and a grid");
    return;
  }
  check_tensor(q.scales, DType::kF16, {q.rows, q.groups()}, "scales");
  check_tensor(q.zeros, DType::kU8, {q.rows, q.groups()}, "zeros");
  check(within(q.zeros.as<std::uint8_t>()),
        fmt::format("a zero point of more than {} bits", q.bits));
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

QuantizedLinear QuantizedLinear::kept(const std::string& name, std::int64_t rows,
                                      std::int64_t cols) {
  QuantizedLinear linear;
  linear.name = name;
  linear.rows = rows;
  linear.cols = cols;
  linear.original = true;
  linear.record = nlohmann::json::object();
  return linear;
}

LinearScheme scheme_of(const QuantizedLinear& linear) {
  if (linear.original) return LinearScheme::original();
  return {.kind = linear.has_table() ? LinearScheme::Kind::kTable : LinearScheme::Kind::kUniform,
          .bits = linear.bits,
          .group_size = linear.group_size,
          .grid = linear.grid,
          .reordered = linear.group_of_column.count() > 0,
          .sparse = !linear.sparse.empty()};
}

DequantizedRows::DequantizedRows(const QuantizedLinear& linear)
    : linear_(linear),
      group_of_(static_cast<std::size_t>(linear.cols)),
      levels_(linear.has_table() ? std::size_t{1} << linear.bits
                                 : static_cast<std::size_t>(linear.groups())),
      values_(static_cast<std::size_t>(linear.cols)) {
  const bool reordered = linear.group_of_column.count() > 0;
  for (std::size_t col = 0; col < group_of_.size(); ++col) {
    group_of_[col] = reordered
                         ? static_cast<std::size_t>(linear.group_of_column.as<std::int32_t>()[col])
                         : col / static_cast<std::size_t>(linear.group_size);
  }
}

std::span<const float> DequantizedRows::values(std::int64_t row) {
  const auto at = static_cast<std::size_t>(row);
  const std::size_t cols = values_.size(), n = levels_.size();
  const HostTensor& levels = linear_.has_table() ? linear_.table : linear_.scales;
  std::ranges::transform(levels.as<std::uint16_t>().subspan(at * n, n), levels_.begin(),
                         half_to_float);
  const auto codes = linear_.codes.as<std::uint8_t>().subspan(at * cols, cols);
  if (linear_.has_table()) {
    for (std::size_t col = 0; col < cols; ++col) values_[col] = levels_[codes[col]];
  } else {
    const auto zeros = linear_.zeros.as<std::uint8_t>().subspan(at * n, n);
    for (std::size_t col = 0; col < cols; ++col) {
      const std::size_t group = group_of_[col];
      values_[col] = value_of(codes[col], levels_[group], zeros[group]);
    }
  }
  if (!linear_.sparse.empty()) linear_.sparse.add_row(row, values_);
  return values_;
}

Tensor dequantize(const QuantizedLinear& q, Backend& backend) {
  require(!q.original, "a linear that is left as it is has no codes");
  if (q.has_table()) return dequantize_table(q, backend);
  if (!q.sparse.empty()) return dequantize_on_host(q, backend);
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

BitsPerWeight bits_per_weight(const std::vector<QuantizedLinear>& linears) {
  constexpr double kF16 = 16, kI32 = 32;
  BitsPerWeight bits;
  double weights = 0;
  for (const QuantizedLinear& linear : linears) {
    const auto rows = static_cast<double>(linear.rows);
    weights += rows * static_cast<double>(linear.cols);
    if (linear.original) {
      bits.dense += kF16 * rows * static_cast<double>(linear.cols);
      continue;
    }
    double bits_of_row = static_cast<double>(linear.cols) * linear.bits;
    if (linear.has_table()) {
      bits_of_row += kF16 * std::exp2(linear.bits);
    } else {
      const double zero_bits = is_symmetric(linear.grid) ? 0 : linear.bits;
      bits_of_row += static_cast<double>(linear.groups()) * (kF16 + zero_bits);
    }
    bits.dense += rows * bits_of_row;
    if (!linear.sparse.empty()) {
      bits.sparse +=
          kI32 * (rows + 1) + (kF16 + kI32) * static_cast<double>(linear.sparse.entries());
    }
  }
  if (weights == 0) return {};
  return {.dense = bits.dense / weights, .sparse = bits.sparse / weights};
}

}  // namespace roundhouse
