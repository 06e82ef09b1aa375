#include "stages/quantize/signround/rounding.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "stages/flow/numerical_failures.h"

namespace roundhouse {

struct LearnedBlock::Tile {
  RowTile at;
  Tensor lo, hi, v, alpha, beta;  // see LearnedRounding
  Tensor codes, scales, zeros;    // kept; empty before the first keep()
  LearnedRounding rounding;
};

std::vector<std::vector<RowTile>> learned_tiles(const BlockTask& task) {
  std::vector<std::vector<RowTile>> tiles = tiles_of_block(task);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    if (task.skips(i)) tiles[i].clear();
  }
  return tiles;
}

LearnedBlock::LearnedBlock(BlockTask& task, const LinearScheme& scheme)
    : task_(task), scheme_(scheme) {
  Backend& backend = task.backend;
  original_ = std::move(task.weights.linears);
  task.weights.linears.clear();
  const auto all_tiles = learned_tiles(task);
  NumericalFailures failures;
  std::int64_t place = 0;  // of a tile in the block
  for (std::size_t i = 0; i < all_tiles.size(); ++i) {
    const LinearSpec& spec = task.decoder.linears()[i];
    const LinearScheme own = task.scheme_of(i, scheme);
    if (own.is_original()) {
      task.weights.linears.push_back(std::move(original_[i]));
      tiles_.emplace_back();
      continue;
    }
    task.weights.linears.emplace_back(backend, backend.activation_type(), spec.rows, spec.cols);
    const QuantizedLinear linear = unsolved_linear(spec, own);
    const std::vector<float> ones(
        static_cast<std::size_t>(std::min(kTileRows, spec.rows) * linear.groups()), 1.0f);
    auto& tiles = tiles_.emplace_back();
    for (const RowTile& at : all_tiles[i]) {
      ++place;
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
      failures.run(place, [&] {
        with_rows_named(spec.name, at.first, [&] {
          backend.find_ranges({.w = w,
                               .group_size = linear.group_size,
                               .grid = own.grid,
                               .bits = own.bits,
                               .lo = tile->lo.view(),
                               .hi = tile->hi.view()});
        });
      });
      backend.zero(tile->v.view());
      const auto one_each =
          std::as_bytes(std::span(ones).first(tile->alpha.bytes() / sizeof(float)));
      backend.upload(one_each, tile->alpha.f32());
      backend.upload(one_each, tile->beta.f32());
      tile->rounding = {.w = w,
                        .group_size = linear.group_size,
                        .grid = own.grid,
                        .bits = own.bits,
                        .lo = tile->lo.view(),
                        .hi = tile->hi.view(),
                        .v = tile->v.view(),
                        .alpha = tile->alpha.view(),
                        .beta = tile->beta.view()};
      tiles.push_back(std::move(tile));
    }
    backend.sync();  // `ones` ends here
  }
  failures.agree(task.team);
}

LearnedBlock::~LearnedBlock() = default;

void LearnedBlock::round() {
  const int rank = task_.team.rank(), size = task_.team.size();
  const auto all_tiles = learned_tiles(task_);
  const auto rows_of = [&](const RowTile& at) {
    return task_.weights.linears[at.linear].view().row_range(at.first, at.first + at.rows);
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

void LearnedBlock::step(BlockSum gradient, float rate, float range_rate) {
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    if (tiles_[i].empty()) continue;
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
      make_room_to_keep(*tile);
      backend.round_learned({.rounding = tile->rounding,
                             .values = {},
                             .codes = tile->codes.view(),
                             .scales = tile->scales.view(),
                             .zeros = tile->zeros.view()});
    }
  }
}

std::vector<RowTile> LearnedBlock::own_tiles() const {
  std::vector<RowTile> own;
  for (const auto& tiles : tiles_) {
    for (const auto& tile : tiles) {
      if (tile) own.push_back(tile->at);
    }
  }
  return own;
}

double LearnedBlock::bytes() const {
  double bytes = 0;
  for (const auto& tiles : tiles_) {
    for (const auto& tile : tiles) {
      for (const Part& part : tile ? parts_of(*tile) : std::vector<Part>())
        bytes += static_cast<double>(part.tensor->bytes());
    }
  }
  return bytes;
}

Record LearnedBlock::save(const RowTile& at) const {
  Record record;
  for (const Part& part : parts_of(tile_at(at))) {
    HostTensor values(part.tensor->type(), {part.tensor->rows(), part.tensor->cols()});
    task_.backend.download(std::as_const(*part.tensor).view().data, values.bytes());
    record.tensors.emplace(part.name, std::move(values));
  }
  return record;
}

void LearnedBlock::restore(const RowTile& at, const Record& record) {
  Tile& tile = tile_at(at);
  if (record.tensors.contains("codes")) make_room_to_keep(tile);
  for (const Part& part : parts_of(tile)) {
    const auto found = record.tensors.find(part.name);
    if (found == record.tensors.end() || found->second.type() != part.tensor->type() ||
        found->second.bytes().size() != part.tensor->bytes()) {
      throw Error(
          "what was learned of it before does not fit; remove the folder `progress` of the recipe "
          "and "
          "start the run again");
    }
    task_.backend.upload(found->second.bytes(), part.tensor->view().data);
  }
  task_.backend.sync();  // `record` may end here
}

LearnedBlock::Tile& LearnedBlock::tile_at(const RowTile& at) const {
  return *tiles_[at.linear][at.first / kTileRows];
}

// What the next steps depend on, and what was kept so far. The rest of a tile follows from the weights.
std::vector<LearnedBlock::Part> LearnedBlock::parts_of(Tile& tile) {
  std::vector<Part> parts = {{"v", &tile.v}, {"alpha", &tile.alpha}, {"beta", &tile.beta}};
  if (!tile.codes.empty()) {
    parts.push_back({"codes", &tile.codes});
    parts.push_back({"scales", &tile.scales});
    parts.push_back({"zeros", &tile.zeros});
  }
  return parts;
}

void LearnedBlock::make_room_to_keep(Tile& tile) const {
  if (!tile.codes.empty()) return;
  tile.codes = Tensor(task_.backend, DType::kU8, tile.v.rows(), tile.v.cols());
  tile.scales = Tensor(task_.backend, DType::kF32, tile.alpha.rows(), tile.alpha.cols());
  tile.zeros = Tensor(task_.backend, DType::kU8, tile.alpha.rows(), tile.alpha.cols());
}

std::vector<QuantizedLinear> LearnedBlock::finish() {
  Backend& backend = task_.backend;
  std::vector<QuantizedLinear> linears;
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    const LinearScheme scheme = task_.scheme_of(i, scheme_);
    if (scheme.is_original()) {
      linears.push_back(kept_linear(task_.decoder.linears()[i]));
      continue;
    }
    QuantizedLinear linear = unsolved_linear(task_.decoder.linears()[i], scheme);
    task_.weights.linears[i] = {};
    const SolveError error =
        solve_in_tiles(TeamSite(task_), linear, [&](std::int64_t first, std::int64_t rows) {
          Tile& tile = *tiles_[i][first / kTileRows];
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
