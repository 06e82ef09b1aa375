#include "stages/flow/block_sum.h"

#include <algorithm>
#include <utility>

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

std::vector<std::vector<RowTile>> tiles_of_block(const BlockSite& site) {
  std::vector<std::vector<RowTile>> tiles;
  for (const LinearSpec& spec : site.decoder.linears()) {
    tiles.push_back(tiles_of_linear(spec, static_cast<int>(tiles.size()), site.team.size()));
  }
  return tiles;
}

BlockSum::BlockSum(const BlockSite& site, int parts)
    : backend_(site.backend), tiles_(tiles_of_block(site)) {
  for (const std::vector<RowTile>& tiles : tiles_) {
    std::vector<TreeSum>& sums = sums_.emplace_back();
    for (const RowTile& tile : tiles) {
      const std::int64_t cols = site.decoder.linears()[tile.linear].cols;
      sums.push_back(
          make_matrix_sum(site.device_team, site.backend, parts, tile.rows, cols, kAddedAtOnce));
    }
  }
}

// The rows of one linear's tiles share its memory.
void BlockSum::add(int part, int linear, Tensor matrix) {
  const auto memory = std::make_shared<Tensor>(std::move(matrix));
  const auto index = static_cast<std::size_t>(linear);
  for (std::size_t t = 0; t < tiles_[index].size(); ++t) {
    const RowTile& tile = tiles_[index][t];
    const Matrix rows = memory->view().row_range(tile.first, tile.first + tile.rows);
    sums_[index][t].add(part, std::make_unique<MatrixSummand>(backend_, memory, rows));
  }
}

std::vector<BlockSum::Tile> BlockSum::finish(int linear) {
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

}  // namespace roundhouse
