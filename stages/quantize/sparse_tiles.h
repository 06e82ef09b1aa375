// A linear's sparse part, put together from the tiles that the ranks of a team made of it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/quantized/sparse_part.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {

// Of a tile: rows counted from its first; row r has entries [starts[r], starts[r + 1]).
struct SparseTile {
  std::vector<std::int32_t> starts = {0}, columns;
  std::vector<float> values;
};
void append(TileBytes& to, const SparseTile& tile);

class SparseTiles {
 public:
  void take(std::int64_t rows, TileReader& bytes);  // the next tile
  std::int64_t entries() const { return static_cast<std::int64_t>(columns_.size()); }
  SparsePart finish() const;

 private:
  std::vector<std::int32_t> offsets_ = {0}, columns_;
  std::vector<float> values_;
};

}  // namespace roundhouse
