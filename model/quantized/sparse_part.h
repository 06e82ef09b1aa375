// The few weights of a linear that its codes do not hold well, as what they differ by from them: compressed sparse rows.
#pragma once

#include <cstdint>
#include <span>

#include "base/tensor.h"

namespace roundhouse {

struct SparsePart {
  HostTensor offsets;  // I32 [rows + 1]: row n has entries [offsets[n], offsets[n + 1])
  HostTensor columns;  // I32 [entries], ascending within a row
  HostTensor values;   // F16 [entries]

  bool empty() const { return offsets.count() == 0; }  // there is none, not even one of no entries
  std::int64_t entries() const { return columns.count(); }
  // Adds those of one row to its `cols` values.
  void add_row(std::int64_t row, std::span<float> values_of_row) const;
};

// Throws Error, which says what is wrong, unless types, shapes and order are as above for this many rows and columns, every column
// is there, and values are finite.
void validate(const SparsePart& sparse, std::int64_t rows, std::int64_t cols);

}  // namespace roundhouse
