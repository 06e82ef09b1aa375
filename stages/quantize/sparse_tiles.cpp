#include "stages/quantize/sparse_tiles.h"

#include <algorithm>
#include <span>

namespace roundhouse {

void append(TileBytes& to, const SparseTile& tile) {
  const auto entries = static_cast<std::int64_t>(tile.values.size());
  append(to, std::as_bytes(std::span(&entries, 1)));
  append(to, std::as_bytes(std::span(tile.starts)));
  append(to, std::as_bytes(std::span(tile.columns)));
  append(to, std::as_bytes(std::span(tile.values)));
}

void SparseTiles::take(std::int64_t rows, TileReader& bytes) {
  const auto read = [&](auto& values) { bytes.take(std::as_writable_bytes(std::span(values))); };
  std::int64_t entries = 0;
  bytes.take(std::as_writable_bytes(std::span(&entries, 1)));
  std::vector<std::int32_t> starts(static_cast<std::size_t>(rows) + 1);
  std::vector<std::int32_t> columns(static_cast<std::size_t>(entries));
  std::vector<float> values(columns.size());
  read(starts);
  read(columns);
  read(values);
  const auto before = static_cast<std::int32_t>(columns_.size());
  for (std::size_t row = 1; row < starts.size(); ++row) offsets_.push_back(before + starts[row]);
  columns_.insert(columns_.end(), columns.begin(), columns.end());
  values_.insert(values_.end(), values.begin(), values.end());
}

SparsePart SparseTiles::finish() const {
  SparsePart part{.offsets = HostTensor(DType::kI32, {std::ssize(offsets_)}),
                  .columns = HostTensor(DType::kI32, {std::ssize(columns_)}),
                  .values = HostTensor(DType::kF16, {std::ssize(values_)})};
  std::ranges::copy(offsets_, part.offsets.as<std::int32_t>().begin());
  std::ranges::copy(columns_, part.columns.as<std::int32_t>().begin());
  std::ranges::transform(values_, part.values.as<std::uint16_t>().begin(), float_to_half);
  return part;
}

}  // namespace roundhouse
