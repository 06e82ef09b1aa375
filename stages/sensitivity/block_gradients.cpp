#include "stages/sensitivity/block_gradients.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "model/block/linear.h"
#include "stages/flow/dropped_samples.h"

namespace roundhouse {
namespace {

// Rows of a gradient that are formed at a time: few enough that they are added while they are in cache.
constexpr std::int64_t kBandRows = 4 * kTileRows;

}  // namespace

BlockGradients::BlockGradients(const BlockSite& site, GradientSums wanted)
    : site_(site), dropped_(site.decoder.linears().size()) {
  require(site.samples != nullptr && (wanted.sum || wanted.squares),
          "gradients need samples, and a sum to be asked for");
  if (wanted.sum) sum_.over_shards = std::make_unique<BlockSum>(site_, site.samples->shards());
  if (wanted.squares) {
    squares_.over_shards = std::make_unique<BlockSum>(site_, site.samples->shards());
  }
  std::int64_t largest = 0;
  for (const LinearSpec& linear : site.decoder.linears()) {
    largest = std::max(largest, std::min(kBandRows, linear.rows) * linear.cols);
  }
  scratch_ = Tensor(site.backend, DType::kF32, 1, largest);
}

void BlockGradients::begin_shard() {
  for (Dropped& dropped : dropped_) {
    dropped.seen = 0;
    dropped.of_shard.clear();
  }
  for (Kind* kind : {&sum_, &squares_}) {
    if (!kind->over_shards) continue;
    kind->of_shard.clear();
    for (const LinearSpec& linear : site_.decoder.linears()) {
      Tensor& sum =
          kind->of_shard.emplace_back(site_.backend, DType::kF32, linear.rows, linear.cols);
      site_.backend.zero(sum.view());
    }
  }
}

Matrix BlockGradients::Kind::band(int linear, std::int64_t begin, std::int64_t end) {
  return over_shards ? of_shard[linear].view().row_range(begin, end) : Matrix();
}

void BlockGradients::add(int linear, const LinearGradient& gradient) {
  const LinearSpec& spec = site_.decoder.linears()[linear];
  const std::int64_t tokens = gradient.x.rows(), length = gradient.length;
  require(length > 0 && tokens % length == 0, "a gradient is not of whole sequences");
  const auto sequences = static_cast<std::size_t>(tokens / length);
  std::vector<std::uint8_t> finite(sequences), of_input(sequences);
  site_.backend.check_finite(
      {.x = std::as_const(gradient.dy).view(), .rows_each = length, .finite = finite});
  site_.backend.check_finite(
      {.x = std::as_const(gradient.x).view(), .rows_each = length, .finite = of_input});
  Dropped& dropped = dropped_[linear];
  for (std::size_t s = 0; s < sequences; ++s, ++dropped.seen) {
    finite[s] &= of_input[s];
    if (finite[s] == 0) dropped.of_shard.push_back(dropped.seen);
  }
  for (std::int64_t begin = 0; begin < spec.rows; begin += kBandRows) {
    const std::int64_t end = std::min(spec.rows, begin + kBandRows);
    const Matrix of_sequence{scratch_.view().data, DType::kF32, end - begin, spec.cols, spec.cols};
    for (std::int64_t row = 0; row < tokens; row += length) {
      if (finite[row / length] == 0) continue;
      weight_gradient(gradient.dy.view().row_range(row, row + length).col_range(begin, end),
                      gradient.x.view().row_range(row, row + length), of_sequence, site_.backend);
      site_.backend.add_gradient({.gradient = of_sequence,
                                  .sum = sum_.band(linear, begin, end),
                                  .squares = squares_.band(linear, begin, end)});
    }
  }
}

void BlockGradients::end_shard(int shard) {
  const std::int64_t first = site_.samples->samples_of_shard(shard).begin;
  for (Dropped& dropped : dropped_) {
    for (const std::int64_t sequence : dropped.of_shard)
      dropped.samples.push_back(first + sequence);
  }
  for (Kind* kind : {&sum_, &squares_}) {
    if (!kind->over_shards) continue;
    for (std::size_t i = 0; i < kind->of_shard.size(); ++i) {
      kind->over_shards->add(shard, static_cast<int>(i), std::move(kind->of_shard[i]));
    }
    kind->of_shard.clear();
  }
}

nlohmann::json BlockGradients::settle_dropped() const {
  const bool any = std::ranges::any_of(
      dropped_, [](const Dropped& dropped) { return !dropped.samples.empty(); });
  nlohmann::json record = nlohmann::json::object();
  if (site_.team.all_reduce_max(any ? 1 : 0) == 0) return record;
  for (std::size_t i = 0; i < dropped_.size(); ++i) {
    (void)roundhouse::settle_dropped(site_, "gradients of " + site_.decoder.linears()[i].name,
                                     dropped_[i].samples, record);
  }
  return record;
}

std::vector<BlockGradients::Tile> BlockGradients::finish(int linear) {
  const LinearSpec& spec = site_.decoder.linears()[linear];
  std::vector<Tile> tiles;
  for (const RowTile& at : tiles_of_linear(spec, linear, site_.team.size())) {
    tiles.push_back(
        {.first = at.first, .sum = {}, .squares = {}, .sum_memory = {}, .squares_memory = {}});
  }
  if (sum_.over_shards) {
    std::vector<BlockSum::Tile> sums = sum_.over_shards->finish(linear);
    for (std::size_t t = 0; t < sums.size(); ++t) {
      tiles[t].sum = sums[t].rows;
      tiles[t].sum_memory = std::move(sums[t].memory);
    }
  }
  if (squares_.over_shards) {
    std::vector<BlockSum::Tile> sums = squares_.over_shards->finish(linear);
    for (std::size_t t = 0; t < sums.size(); ++t) {
      tiles[t].squares = sums[t].rows;
      tiles[t].squares_memory = std::move(sums[t].memory);
    }
  }
  std::erase_if(tiles, [](const Tile& tile) { return !tile.sum_memory && !tile.squares_memory; });
  return tiles;
}

}  // namespace roundhouse
