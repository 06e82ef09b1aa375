#include "model/quantized/sparse_part.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
namespace {

struct Row {
  std::span<const std::int32_t> columns;
  std::span<const std::uint16_t> values;
};

// Precondition: offsets are validated.
Row row_of(const SparsePart& sparse, std::int64_t row) {
  const auto offsets = sparse.offsets.as<std::int32_t>().subspan(static_cast<std::size_t>(row), 2);
  const auto begin = static_cast<std::size_t>(offsets[0]);
  const std::size_t n = static_cast<std::size_t>(offsets[1]) - begin;
  return {sparse.columns.as<std::int32_t>().subspan(begin, n),
          sparse.values.as<std::uint16_t>().subspan(begin, n)};
}

}  // namespace

void SparsePart::add_row(std::int64_t row, std::span<float> values_of_row) const {
  const Row entries = row_of(*this, row);
  for (std::size_t i = 0; i < entries.columns.size(); ++i) {
    values_of_row[entries.columns[i]] += half_to_float(entries.values[i]);
  }
}

void validate(const SparsePart& sparse, std::int64_t rows, std::int64_t cols) {
  const auto check = [](bool ok, const std::string& what) {
    if (!ok) throw Error("sparse part: " + what);
  };
  const auto check_tensor = [&](const HostTensor& tensor, DType type, const Shape& shape,
                                const char* name) {
    check(tensor.type() == type && tensor.shape() == shape,
          std::string(name) + " must be " + std::string(name_of(type)) + " of the right shape");
  };
  check_tensor(sparse.offsets, DType::kI32, {rows + 1}, "offsets");
  const std::span<const std::int32_t> offsets = sparse.offsets.as<std::int32_t>();
  check(offsets.front() == 0 && std::ranges::is_sorted(offsets),
        "offsets must begin with 0 and not fall");
  check_tensor(sparse.columns, DType::kI32, {offsets.back()}, "columns");
  check_tensor(sparse.values, DType::kF16, {offsets.back()}, "values");
  for (std::int64_t row = 0; row < rows; ++row) {
    const Row entries = row_of(sparse, row);
    const auto fault = [&](const char* what) { return fmt::format("row {}{}", row, what); };
    check(
        std::ranges::adjacent_find(entries.columns, std::greater_equal()) == entries.columns.end(),
        fault(": columns must ascend"));
    check(
        entries.columns.empty() || (entries.columns.front() >= 0 && entries.columns.back() < cols),
        fault(" has a column that is not there"));
    check(
        std::ranges::all_of(entries.values,
                            [](std::uint16_t bits) { return std::isfinite(half_to_float(bits)); }),
        fault(" has a value that is not finite"));
  }
}

}  // namespace roundhouse
