#include "stages/quantize/squeezellm/kmeans.h"

#include <cmath>

#include <fmt/format.h>

#include "base/numerical_error.h"

namespace roundhouse {
namespace {

template <class T>
std::vector<T> values_of(const Tensor& m, Backend& backend) {
  std::vector<T> values(static_cast<std::size_t>(m.rows() * m.cols()));
  backend.download(m.view().data, std::as_writable_bytes(std::span(values)));
  return values;
}

// What is kept beside the tables never comes to cluster_rows(), which refuses it.
void check_finite(const Tensor& m, const char* what, Backend& backend) {
  std::vector<std::uint8_t> finite(static_cast<std::size_t>(m.rows()));
  backend.check_finite({.x = m.view(), .rows_each = 1, .finite = finite});
  for (std::size_t row = 0; row < finite.size(); ++row) {
    if (finite[row] != 0) continue;
    throw NumericalError(fmt::format("row {}: a {} is not finite", row, what));
  }
}

}  // namespace

TableTile cluster_tile(const ConstMatrix& w, const ConstMatrix& sensitivity,
                       const TableOptions& options, Backend& backend) {
  const std::int64_t rows = w.rows, cols = w.cols, entries = std::int64_t{1} << options.bits;
  Tensor original(backend, DType::kF32, rows, cols);
  Tensor kept(backend, DType::kF32, rows, cols);
  Tensor weights(backend, DType::kF32, rows, cols);
  Tensor removed(backend, DType::kU8, rows, cols);
  backend.copy(w, original.view());
  backend.copy(w, kept.view());
  backend.copy(sensitivity, weights.view());
  const bool sparse = std::isfinite(options.sensitive_above) || std::isfinite(options.large_from);
  if (sparse) {
    check_finite(original, "weight", backend);
    check_finite(weights, "sensitivity", backend);
    backend.remove_outliers({.w = kept.view(),
                             .sensitivity = weights.view(),
                             .sensitive_above = options.sensitive_above,
                             .large_from = options.large_from,
                             .removed = removed.view()});
  }
  Tensor tables(backend, DType::kF32, rows, entries);
  Tensor half_tables(backend, DType::kF16, rows, entries);
  Tensor codes(backend, DType::kU8, rows, cols);
  TableTile tile{.codes = HostTensor(DType::kU8, {rows, cols}),
                 .tables = HostTensor(DType::kF16, {rows, entries}),
                 .rows = std::vector<ClusteredRow>(static_cast<std::size_t>(rows)),
                 .starts = {0},
                 .columns = {},
                 .values = {}};
  backend.cluster_rows({.w = kept.view(),
                        .sensitivity = weights.view(),
                        .bits = options.bits,
                        .exact = options.exact,
                        .seed = options.seed,
                        .tables = tables.view(),
                        .codes = codes.view(),
                        .rows = tile.rows});
  backend.copy(tables.view(), half_tables.view());
  backend.download(codes.view().data, tile.codes.bytes());
  backend.download(half_tables.view().data, tile.tables.bytes());
  tile.starts.resize(static_cast<std::size_t>(rows) + 1, 0);
  if (!sparse) return tile;

  const std::vector<std::uint8_t> is_removed = values_of<std::uint8_t>(removed, backend);
  const std::vector<float> all = values_of<float>(original, backend);
  const std::span<const std::uint8_t> code = tile.codes.as<std::uint8_t>();
  const std::span<const std::uint16_t> table = tile.tables.as<std::uint16_t>();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < cols; ++column) {
      const auto at = static_cast<std::size_t>(row * cols + column);
      if (is_removed[at] == 0) continue;
      const float dense = half_to_float(table[row * entries + code[at]]);
      tile.columns.push_back(static_cast<std::int32_t>(column));
      tile.values.push_back(all[at] - dense);
    }
    tile.starts[static_cast<std::size_t>(row) + 1] = static_cast<std::int32_t>(tile.columns.size());
  }
  return tile;
}

}  // namespace roundhouse
