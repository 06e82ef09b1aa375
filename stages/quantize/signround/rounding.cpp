#include "stages/quantize/signround/rounding.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "stages/flow/matrix_sum.h"

namespace roundhouse {

std::vector<RowTile> tiles_of_linear(const LinearSpec& spec, int linear, int ranks) {
  std::vector<RowTile> tiles;
  for (std::int64_t first = 0; first < spec.rows; first += kTileRows) {
    tiles.push_back({.linear = linear,
                     .first = first,
                     .rows = std::min(kTileRows, spec.rows - first),
                     .owner = static_cast<int>(tiles.size()) % ranks});
  }
  return tiles;
}

namespace {

std::vector<std::vector<RowTile>> tiles_of_block(const BlockTask& task) {
  std::vector<std::vector<RowTile>> tiles;
  for (const LinearSpec& spec : task.shape.linears()) {
    tiles.push_back(tiles_of_linear(spec, static_cast<int>(tiles.size()), task.team.size()));
  }
  return tiles;
}

}  // namespace

BatchGradient::BatchGradient(const BlockTask& task, int parts)
    : task_(task), tiles_(tiles_of_block(task)) {
  for (const std::vector<RowTile>& tiles : tiles_) {
    std::vector<TreeSum>& sums = sums_.emplace_back();
    for (const RowTile& tile : tiles) {
      const std::int64_t cols = task.shape.linears()[static_cast<std::size_t>(tile.linear)].cols;
      sums.push_back(make_matrix_sum(
          task.device_team, task.backend, parts, [&backend = task.backend, rows = tile.rows, cols] {
            return std::make_shared<Tensor>(backend, DType::kF32, rows, cols);
          }));
    }
  }
}

// The rows of one linear's tiles share its memory.
void BatchGradient::add(int part, int linear, Tensor gradient) {
  const auto memory = std::make_shared<Tensor>(std::move(gradient));
  const auto index = static_cast<std::size_t>(linear);
  for (std::size_t t = 0; t < tiles_[index].size(); ++t) {
    const RowTile& tile = tiles_[index][t];
    const Matrix rows = memory->view().row_range(tile.first, tile.first + tile.rows);
    sums_[index][t].add(part, std::make_unique<MatrixSummand>(task_.backend, memory, rows));
  }
}

std::vector<BatchGradient::Tile> BatchGradient::finish(int linear) {
  const auto index = static_cast<std::size_t>(linear);
  std::vector<int> owners;
  for (const RowTile& tile : tiles_[index]) owners.push_back(tile.owner);
  std::vector<Tile> result;
  for (auto& sum : TreeSum::finish_all(sums_[index], owners)) {
    const ConstMatrix rows = sum ? static_cast<MatrixSummand&>(*sum).matrix() : Matrix();
    result.push_back({rows, std::move(sum)});
  }
  return result;
}

struct LearnedBlock::Tile {
  RowTile at;
  Tensor lo, hi, v, alpha, beta;  // see LearnedRounding
  Tensor codes, scales, zeros;    // kept; empty before the first keep()
  LearnedRounding rounding;
};

LearnedBlock::LearnedBlock(BlockTask& task, const LinearScheme& scheme)
    : task_(task), scheme_(scheme) {
  Backend& backend = task.backend;
  original_ = std::move(task.weights.linears);
  task.weights.linears.clear();
  const auto all_tiles = tiles_of_block(task);
  for (std::size_t i = 0; i < all_tiles.size(); ++i) {
    const LinearSpec& spec = task.shape.linears()[i];
    task.weights.linears.emplace_back(backend, backend.activation_type(), spec.rows, spec.cols);
    const QuantizedLinear linear = unsolved_linear(spec, scheme);
    const std::vector<float> ones(
        static_cast<std::size_t>(std::min(kTileRows, spec.rows) * linear.groups()), 1.0f);
    auto& tiles = tiles_.emplace_back();
    for (const RowTile& at : all_tiles[i]) {
      if (at.owner != task.team.rank()) {
        tiles.push_back(nullptr);
        continue;
      }
      const auto per_group = [&] { return Tensor(backend, DType::kF32, at.rows, linear.groups()); };
      auto tile = std::make_unique<Tile>(Tile{.at = at,
                                              .lo = per_group(),
                                              .hi = per_group(),
                                              .v = Tensor(backend, DType::kF32, at.rows, spec.cols),
                                              .alpha = per_group(),
                                              .beta = per_group(),
                                              .codes = {},
                                              .scales = {},
                                              .zeros = {},
                                              .rounding = {}});
      const ConstMatrix w =
          std::as_const(original_[i]).view().row_range(at.first, at.first + at.rows);
      with_rows_named(spec.name, at.first, [&] {
        backend.find_ranges({.w = w,
                             .group_size = linear.group_size,
                             .grid = scheme.grid,
                             .bits = scheme.bits,
                             .lo = tile->lo.view(),
                             .hi = tile->hi.view()});
      });
      backend.zero(tile->v.view());
      const auto one_each =
          std::as_bytes(std::span(ones).first(tile->alpha.bytes() / sizeof(float)));
      backend.upload(one_each, tile->alpha.f32());
      backend.upload(one_each, tile->beta.f32());
      tile->rounding = {.w = w,
                        .group_size = linear.group_size,
                        .grid = scheme.grid,
                        .bits = scheme.bits,
                        .lo = tile->lo.view(),
                        .hi = tile->hi.view(),
                        .v = tile->v.view(),
                        .alpha = tile->alpha.view(),
                        .beta = tile->beta.view()};
      tiles.push_back(std::move(tile));
    }
    backend.sync();  // `ones` ends here
  }
}

LearnedBlock::~LearnedBlock() = default;

void LearnedBlock::round() {
  const int rank = task_.team.rank(), size = task_.team.size();
  const auto all_tiles = tiles_of_block(task_);
  const auto rows_of = [&](const RowTile& at) {
    return task_.weights.linears[static_cast<std::size_t>(at.linear)].view().row_range(
        at.first, at.first + at.rows);
  };
  for (const auto& tiles : tiles_) {
    for (const auto& tile : tiles) {
      if (!tile) continue;
      task_.backend.round_learned({.rounding = tile->rounding,
                                   .values = rows_of(tile->at),
                                   .codes = {},
                                   .scales = {},
                                   .zeros = {}});
    }
  }
  if (size == 1) return;
  task_.backend.sync();  // messages do not wait for what is only queued
  std::vector<std::unique_ptr<Ticket>> tickets;
  for (const std::vector<RowTile>& tiles : all_tiles) {
    std::vector<Send> sends;
    std::vector<Receive> receives;
    for (const RowTile& at : tiles) {
      const Matrix rows = rows_of(at);
      const std::span<std::byte> bytes(
          static_cast<std::byte*>(rows.data),
          static_cast<std::size_t>(rows.rows * rows.cols) * size_of(rows.type));
      if (at.owner != rank) {
        receives.push_back({bytes, at.owner});
        continue;
      }
      for (int other = 0; other < size; ++other) {
        if (other != rank) sends.push_back({bytes, other});
      }
    }
    tickets.push_back(task_.device_team.start(sends, receives));
  }
  for (const auto& ticket : tickets) ticket->wait();
}

void LearnedBlock::step(BatchGradient gradient, float rate, float range_rate) {
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    const auto sums = gradient.finish(static_cast<int>(i));
    for (std::size_t t = 0; t < tiles_[i].size(); ++t) {
      if (!tiles_[i][t]) continue;
      task_.backend.learn_rounding({.rounding = tiles_[i][t]->rounding,
                                    .gradient = sums[t].rows,
                                    .rate = rate,
                                    .range_rate = range_rate});
    }
  }
}

void LearnedBlock::keep() {
  Backend& backend = task_.backend;
  for (const auto& tiles : tiles_) {
    for (const auto& tile : tiles) {
      if (!tile) continue;
      if (tile->codes.empty()) {
        tile->codes = Tensor(backend, DType::kU8, tile->v.rows(), tile->v.cols());
        tile->scales = Tensor(backend, DType::kF32, tile->alpha.rows(), tile->alpha.cols());
        tile->zeros = Tensor(backend, DType::kU8, tile->alpha.rows(), tile->alpha.cols());
      }
      backend.round_learned({.rounding = tile->rounding,
                             .values = {},
                             .codes = tile->codes.view(),
                             .scales = tile->scales.view(),
                             .zeros = tile->zeros.view()});
    }
  }
}

std::vector<QuantizedLinear> LearnedBlock::finish() {
  Backend& backend = task_.backend;
  std::vector<QuantizedLinear> linears;
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    QuantizedLinear linear = unsolved_linear(task_.shape.linears()[i], scheme_);
    task_.weights.linears[i] = {};
    const SolveError error =
        solve_in_tiles(task_.team, linear, [&](std::int64_t first, std::int64_t rows) {
          Tile& tile = *tiles_[i][static_cast<std::size_t>(first / kTileRows)];
          require(!tile.codes.empty(), "nothing was kept of the rounding");
          return download_rounded_tile(tile_weights(original_[i], first, rows, backend),
                                       linear.group_size, tile.codes, tile.scales, tile.zeros,
                                       backend);
        });
    linear.record = {{"error", error.error},
                     {"relative_error", error.norm > 0 ? error.error / error.norm : 0.0}};
    tiles_[i].clear();
    original_[i] = {};
    task_.weights.linears[i] = dequantize(linear, backend);
    linears.push_back(std::move(linear));
  }
  return linears;
}

}  // namespace roundhouse
