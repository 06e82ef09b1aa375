#include "stages/quantize/tiles.h"

#include <algorithm>
#include <cstring>
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

}  // namespace

QuantizedLinear unsolved_linear(const LinearSpec& spec, int bits, std::int64_t group_size,
                                Grid grid) {
  QuantizedLinear linear;
  linear.name = spec.name;
  linear.bits = bits;
  linear.grid = grid;
  linear.rows = spec.rows;
  linear.cols = spec.cols;
  linear.group_size = group_size == -1 ? spec.cols : std::min(group_size, spec.cols);
  linear.record = nlohmann::json::object();
  return linear;
}

Tensor tile_weights(const Tensor& weights, std::int64_t first, std::int64_t rows,
                    Backend& backend) {
  Tensor tile(backend, DType::kF32, rows, weights.cols());
  backend.copy(weights.view().row_range(first, first + rows), tile.view());
  return tile;
}

SolveError solve_in_tiles(
    Communicator& team, QuantizedLinear& linear,
    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve) {
  const std::int64_t tiles = (linear.rows + kTileRows - 1) / kTileRows;
  const auto rows_in = [&](std::int64_t tile) {
    return std::min(kTileRows, linear.rows - tile * kTileRows);
  };

  // A rank's message holds its tiles in order, each as error, norm, codes, scales, zeros.
  std::vector<std::byte> mine;
  for (std::int64_t tile = team.rank(); tile < tiles; tile += team.size()) {
    const TileResult result = solve(tile * kTileRows, rows_in(tile));
    append(mine, std::as_bytes(std::span(&result.error.error, 1)));
    append(mine, std::as_bytes(std::span(&result.error.norm, 1)));
    append(mine, result.codes.bytes());
    append(mine, result.scales.bytes());
    append(mine, result.zeros.bytes());
  }
  const std::vector<std::vector<std::byte>> messages = team.all_gather(mine);

  linear.codes = HostTensor(DType::kU8, {linear.rows, linear.cols});
  linear.scales = HostTensor(DType::kF16, {linear.rows, linear.groups()});
  linear.zeros = HostTensor(DType::kU8, {linear.rows, linear.groups()});
  std::vector<MessageReader> readers(messages.begin(), messages.end());
  SolveError total;
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    MessageReader& reader = readers[static_cast<std::size_t>(tile % team.size())];
    SolveError error;
    reader.take(std::as_writable_bytes(std::span(&error.error, 1)));
    reader.take(std::as_writable_bytes(std::span(&error.norm, 1)));
    for (HostTensor* part : {&linear.codes, &linear.scales, &linear.zeros}) {
      reader.take(rows_of(*part, tile * kTileRows, rows_in(tile)));
    }
    total.error += error.error;
    total.norm += error.norm;
  }
  for (const MessageReader& reader : readers) {
    require(reader.at_end(), "a rank sent too much of its tiles");
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
