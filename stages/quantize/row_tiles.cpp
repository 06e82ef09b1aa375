#include "stages/quantize/row_tiles.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "base/error.h"

namespace roundhouse {
namespace {

void append(std::vector<std::byte>& message, std::span<const std::byte> bytes) {
  message.insert(message.end(), bytes.begin(), bytes.end());
}

// Takes the next bytes of a message.
class MessageReader {
 public:
  explicit MessageReader(std::span<const std::byte> message) : rest_(message) {}

  void take(std::span<std::byte> to) {
    require(to.size() <= rest_.size(), "a rank sent too little of its tiles");
    std::ranges::copy(rest_.first(to.size()), to.begin());
    rest_ = rest_.subspan(to.size());
  }
  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

// Rows [first, first + rows) of a matrix.
std::span<std::byte> rows_of(HostTensor& matrix, std::int64_t first, std::int64_t rows) {
  const std::size_t stride = static_cast<std::size_t>(matrix.shape()[1]) * size_of(matrix.type());
  return matrix.bytes().subspan(static_cast<std::size_t>(first) * stride,
                                static_cast<std::size_t>(rows) * stride);
}

void put(HostTensor& tile_rows, HostTensor& matrix, std::int64_t tile) {
  std::ranges::copy(tile_rows.bytes(),
                    rows_of(matrix, tile * kTileRows, tile_rows.shape()[0]).begin());
}

}  // namespace

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

Tensor tile_weights(const Tensor& weights, std::int64_t first, std::int64_t rows,
                    Backend& backend) {
  Tensor tile(backend, DType::kF32, rows, weights.cols());
  backend.copy(weights.view().row_range(first, first + rows), tile.view());
  return tile;
}

void with_rows_named(const std::string& linear, std::int64_t first,
                     const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    throw Error(linear + ", rows from " + std::to_string(first) + ": " + error.what());
  }
}

SolveError solve_in_tiles(
    Communicator& team, QuantizedLinear& linear,
    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve) {
  const std::int64_t tiles = (linear.rows + kTileRows - 1) / kTileRows;
  const auto rows_in = [&](std::int64_t tile) {
    return std::min(kTileRows, linear.rows - tile * kTileRows);
  };

  linear.codes = HostTensor(DType::kU8, {linear.rows, linear.cols});
  linear.scales = HostTensor(DType::kF16, {linear.rows, linear.groups()});
  linear.zeros = HostTensor(DType::kU8, {linear.rows, linear.groups()});
  std::vector<SolveError> errors(static_cast<std::size_t>(tiles));

  // A rank's message holds its tiles in order, each as error, norm, codes, scales, zeros.
  std::vector<std::byte> message;
  for (std::int64_t tile = team.rank(); tile < tiles; tile += team.size()) {
    TileResult result;
    with_rows_named(linear.name, tile * kTileRows,
                    [&] { result = solve(tile * kTileRows, rows_in(tile)); });
    errors[static_cast<std::size_t>(tile)] = result.error;
    if (team.size() > 1) {
      append(message, std::as_bytes(std::span(&result.error, 1)));
      append(message, result.codes.bytes());
      append(message, result.scales.bytes());
      append(message, result.zeros.bytes());
    }
    put(result.codes, linear.codes, tile);
    put(result.scales, linear.scales, tile);
    put(result.zeros, linear.zeros, tile);
  }

  if (team.size() > 1) {
    const std::vector<std::vector<std::byte>> messages = team.all_gather(message);
    std::vector<MessageReader> readers(messages.begin(), messages.end());
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      MessageReader& reader = readers[static_cast<std::size_t>(tile % team.size())];
      reader.take(std::as_writable_bytes(std::span(&errors[static_cast<std::size_t>(tile)], 1)));
      for (HostTensor* part : {&linear.codes, &linear.scales, &linear.zeros}) {
        reader.take(rows_of(*part, tile * kTileRows, rows_in(tile)));
      }
    }
    for (const MessageReader& reader : readers) {
      require(reader.at_end(), "a rank sent too much of its tiles");
    }
  }

  SolveError total;
  for (const SolveError& error : errors) {
    total.error += error.error;
    total.norm += error.norm;
  }
  return total;
}

std::vector<double> sum_over_tiles(
    Communicator& team, std::int64_t rows, std::size_t count,
    const std::function<std::vector<double>(std::int64_t first, std::int64_t rows)>& numbers) {
  const std::int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  std::vector<std::byte> mine;
  for (std::int64_t tile = team.rank(); tile < tiles; tile += team.size()) {
    const std::int64_t first = tile * kTileRows;
    const std::vector<double> values = numbers(first, std::min(kTileRows, rows - first));
    require(values.size() == count, "a tile has another count of numbers");
    append(mine, std::as_bytes(std::span(values)));
  }
  const std::vector<std::vector<std::byte>> messages = team.all_gather(mine);
  std::vector<MessageReader> readers(messages.begin(), messages.end());
  std::vector<double> sums(count), values(count);
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    readers[static_cast<std::size_t>(tile % team.size())].take(
        std::as_writable_bytes(std::span(values)));
    for (std::size_t i = 0; i < count; ++i) sums[i] += values[i];
  }
  return sums;
}

}  // namespace roundhouse
