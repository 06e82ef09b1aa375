#include "stages/quantize/row_tiles.h"

#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "stages/flow/matrix_sum.h"
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
  with_place_named(fmt::format("{}, rows from {}", linear, first), work);
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
    take(tile * kTileRows, readers[tile % team.size()]);
  }
  for (const TileReader& reader : readers) {
    require(reader.at_end(), "a rank sent too much of its tiles");
  }
}

namespace {

// The rows of each rank's tiles, of matrices in host memory that all ranks need whole: each has filled its own.
class RowExchange {
 public:
  RowExchange(Transport& team, Backend& backend, std::int64_t rows)
      : team_(team), backend_(backend), rows_(rows) {}

  void run(std::initializer_list<HostTensor*> matrices) {
    std::vector<Send> sends;
    std::vector<Receive> receives;
    std::vector<Tensor> memory;  // by matrix and rank
    for (HostTensor* const matrix : matrices) {
      for (int rank = 0; rank < team_.size(); ++rank) {
        const std::int64_t row_bytes = static_cast<std::int64_t>(rows_of(*matrix, 0, 1).size());
        Tensor& rows = memory.emplace_back(backend_, DType::kU8, rows_of_rank(rank), row_bytes);
        if (rows.empty()) continue;
        if (rank == team_.rank()) {
          for_each_tile(*matrix, rows, rank, [&](std::span<std::byte> at_host, void* here) {
            backend_.upload(at_host, here);
          });
          for (int to = 0; to < team_.size(); ++to)
            if (to != rank) sends.push_back({bytes_of(rows.view()), to});
        } else {
          receives.push_back({bytes_of(rows.view()), rank});
        }
      }
    }
    backend_.sync();
    team_.start(sends, receives)->wait();
    std::size_t next = 0;
    for (HostTensor* const matrix : matrices) {
      for (int rank = 0; rank < team_.size(); ++rank) {
        Tensor& rows = memory[next++];
        if (rank == team_.rank()) continue;
        for_each_tile(*matrix, rows, rank, [&](std::span<std::byte> at_host, const void* here) {
          backend_.download(here, at_host);
        });
      }
    }
  }

 private:
  // Tiles of a rank, in order: where one is in the whole matrix, and where among the rank's rows.
  template <class Visit>
  void for_each_tile(HostTensor& matrix, Tensor& rows, int rank, const Visit& visit) {
    std::int64_t row = 0;
    for (std::int64_t first = rank * kTileRows; first < rows_; first += team_.size() * kTileRows) {
      const std::int64_t count = std::min(kTileRows, rows_ - first);
      visit(rows_of(matrix, first, count), rows.view().row_range(row, row + count).data);
      row += count;
    }
  }
  std::int64_t rows_of_rank(int rank) const {
    std::int64_t rows = 0;
    for (std::int64_t first = rank * kTileRows; first < rows_; first += team_.size() * kTileRows)
      rows += std::min(kTileRows, rows_ - first);
    return rows;
  }

  Transport& team_;
  Backend& backend_;
  std::int64_t rows_;
};

}  // namespace

SolveError solve_in_tiles(
    const TeamSite& site, QuantizedLinear& linear,
    const std::function<TileResult(std::int64_t first, std::int64_t rows)>& solve) {
  linear.codes = HostTensor(DType::kU8, {linear.rows, linear.cols});
  linear.scales = HostTensor(DType::kF16, {linear.rows, linear.groups()});
  linear.zeros = HostTensor(DType::kU8, {linear.rows, linear.groups()});
  SolveError total;
  share_tiles(
      site.team, linear.rows,
      [&](std::int64_t first, std::int64_t rows) {
        TileResult result;
        with_rows_named(linear.name, first, [&] { result = solve(first, rows); });
        std::ranges::copy(result.codes.bytes(), rows_of(linear.codes, first, rows).begin());
        std::ranges::copy(result.scales.bytes(), rows_of(linear.scales, first, rows).begin());
        std::ranges::copy(result.zeros.bytes(), rows_of(linear.zeros, first, rows).begin());
        TileBytes bytes;
        append(bytes, std::as_bytes(std::span(&result.error, 1)));
        return bytes;
      },
      [&](std::int64_t, TileReader& bytes) {
        SolveError error;
        bytes.take(std::as_writable_bytes(std::span(&error, 1)));
        total.error += error.error;
        total.norm += error.norm;
        total.rounded_rows += error.rounded_rows;
      });
  if (site.team.size() > 1) {
    RowExchange(site.device_team, site.backend, linear.rows)
        .run({&linear.codes, &linear.scales, &linear.zeros});
  }
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
