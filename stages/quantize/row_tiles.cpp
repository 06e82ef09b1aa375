#include "stages/quantize/row_tiles.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "base/numerical_error.h"
#include "stages/flow/numerical_failures.h"

namespace roundhouse {
void TileReader::take(std::span<std::byte> to) {
  require(to.size() <= rest_.size(), "a rank sent too little of its tiles");
  std::ranges::copy(rest_.first(to.size()), to.begin());
  rest_ = rest_.subspan(to.size());
}

void append(TileBytes& to, std::span<const std::byte> bytes) {
  to.insert(to.end(), bytes.begin(), bytes.end());
}

std::span<std::byte> rows_of(HostTensor& matrix, std::int64_t first, std::int64_t rows) {
  const std::size_t stride = static_cast<std::size_t>(matrix.shape()[1]) * size_of(matrix.type());
  return matrix.bytes().subspan(static_cast<std::size_t>(first) * stride,
                                static_cast<std::size_t>(rows) * stride);
}

TileResult download_tile(const Tensor& codes, const Tensor& scales, const Tensor& zeros,
                         const Tensor& row_errors, const Tensor& row_norms, Backend& backend) {
  const std::int64_t rows = codes.rows(), groups = scales.cols();
  TileResult result{.codes = HostTensor(DType::kU8, {rows, codes.cols()}),
                    .scales = HostTensor(DType::kF16, {rows, groups}),
                    .zeros = HostTensor(DType::kU8, {rows, groups}),
                    .error = {}};
  Tensor halves(backend, DType::kF16, rows, groups);
  backend.copy(scales.view(), halves.view());  // exact: a grid's scales are float16 already
  backend.download(codes.view().data, result.codes.bytes());
  backend.download(halves.view().data, result.scales.bytes());
  backend.download(zeros.view().data, result.zeros.bytes());
  const auto sum = [&](const Tensor& of_rows) {
    std::vector<float> values(static_cast<std::size_t>(rows));
    backend.download(of_rows.f32(), std::as_writable_bytes(std::span(values)));
    return std::accumulate(values.begin(), values.end(), 0.0);
  };
  result.error = {.error = sum(row_errors), .norm = sum(row_norms)};
  return result;
}

TileResult download_rounded_tile(const Tensor& w, std::int64_t group_size, const Tensor& codes,
                                 const Tensor& scales, const Tensor& zeros, Backend& backend) {
  Tensor value(backend, DType::kF32, w.rows(), w.cols());
  backend.dequantize({.codes = codes.view(),
                      .group_size = group_size,
                      .scales = scales.view(),
                      .zeros = zeros.view(),
                      .group_of_column = {},
                      .w = value.view()});
  Tensor errors(backend, DType::kF32, w.rows(), 1), norms(backend, DType::kF32, w.rows(), 1);
  backend.row_errors(
      {.w = w.view(), .value = value.view(), .column_weights = {}, .sums = errors.view()});
  backend.row_errors({.w = w.view(), .value = {}, .column_weights = {}, .sums = norms.view()});
  return download_tile(codes, scales, zeros, errors, norms, backend);
}

QuantizedLinear unsolved_linear(const LinearSpec& spec, const LinearScheme& scheme) {
  require(!scheme.is_original(), "a linear that stays as it is is not solved");
  QuantizedLinear linear;
  linear.name = spec.name;
  linear.bits = scheme.bits;
  linear.grid = scheme.grid;
  linear.rows = spec.rows;
  linear.cols = spec.cols;
  linear.group_size = scheme.group_size_for(spec.cols);
  linear.record = nlohmann::json::object();
  return linear;
}

QuantizedLinear kept_linear(const LinearSpec& spec) {
  return QuantizedLinear::kept(spec.name, spec.rows, spec.cols);
}

Tensor tile_weights(const Tensor& weights, std::int64_t first, std::int64_t rows,
                    Backend& backend) {
  Tensor tile(backend, DType::kF32, rows, weights.cols());
  backend.copy(weights.view().row_range(first, first + rows), tile.view());
  return tile;
}

void with_rows_named(const std::string& linear, std::int64_t first,
                     const std::function<void()>& work) {
  const std::string place = linear + ", rows from " + std::to_string(first) + ": ";
  try {
    work();
  } catch (const NumericalError& error) {
    throw NumericalError(place + error.what());
  } catch (const Error& error) {
    throw Error(place + error.what());
  }
}

void share_tiles(Communicator& team, std::int64_t rows,
                 const std::function<TileBytes(std::int64_t first, std::int64_t rows)>& make,
                 const std::function<void(std::int64_t first, TileReader& bytes)>& take) {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const auto rows_in = [&](std::int64_t tile) {
    return std::min(kTileRows, rows - tile * kTileRows);
  };
  NumericalFailures failures;
  if (team.size() == 1) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      TileBytes bytes;
      failures.run(tile, [&] { bytes = make(tile * kTileRows, rows_in(tile)); });
      failures.agree(team);
      TileReader reader(bytes);
      take(tile * kTileRows, reader);
      require(reader.at_end(), "of a tile not all was taken");
    }
    return;
  }
  TileBytes mine;  // this rank's tiles, in order
  for (std::int64_t tile = team.rank(); tile < tiles; tile += team.size()) {
    failures.run(tile, [&] { append(mine, make(tile * kTileRows, rows_in(tile))); });
  }
  failures.agree(team);
  const std::vector<TileBytes> messages = team.all_gather(mine);
  mine = {};
  std::vector<TileReader> readers(messages.begin(), messages.end());
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    take(tile * kTileRows, readers[static_cast<std::size_t>(tile % team.size())]);
  }
  for (const TileReader& reader : readers) {
    require(reader.at_end(), "a rank sent too much of its tiles");
  }
}

SolveError solve_in_tiles(
    Communicator& team, QuantizedLinear& linear,
    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve) {
  linear.codes = HostTensor(DType::kU8, {linear.rows, linear.cols});
  linear.scales = HostTensor(DType::kF16, {linear.rows, linear.groups()});
  linear.zeros = HostTensor(DType::kU8, {linear.rows, linear.groups()});
  SolveError total;
  share_tiles(
      team, linear.rows,
      [&](std::int64_t first, std::int64_t rows) {
        TileResult result;
        with_rows_named(linear.name, first, [&] { result = solve(first, rows); });
        TileBytes bytes;
        append(bytes, std::as_bytes(std::span(&result.error, 1)));
        append(bytes, result.codes.bytes());
        append(bytes, result.scales.bytes());
        append(bytes, result.zeros.bytes());
        return bytes;
      },
      [&](std::int64_t first, TileReader& bytes) {
        SolveError error;
        bytes.take(std::as_writable_bytes(std::span(&error, 1)));
        total.error += error.error;
        total.norm += error.norm;
        total.rounded_rows += error.rounded_rows;
        const std::int64_t rows = std::min(kTileRows, linear.rows - first);
        for (HostTensor* part : {&linear.codes, &linear.scales, &linear.zeros}) {
          bytes.take(rows_of(*part, first, rows));
        }
      });
  return total;
}

std::vector<double> sum_over_tiles(
    Communicator& team, std::int64_t rows, std::size_t count,
    const std::function<std::vector<double>(std::int64_t first, std::int64_t rows)>& numbers) {
  std::vector<double> sums(count), values(count);
  share_tiles(
      team, rows,
      [&](std::int64_t first, std::int64_t of_tile) {
        const std::vector<double> made = numbers(first, of_tile);
        require(made.size() == count, "a tile has another count of numbers");
        TileBytes bytes;
        append(bytes, std::as_bytes(std::span(made)));
        return bytes;
      },
      [&](std::int64_t, TileReader& bytes) {
        bytes.take(std::as_writable_bytes(std::span(values)));
        for (std::size_t i = 0; i < count; ++i) sums[i] += values[i];
      });
  return sums;
}

}  // namespace roundhouse
