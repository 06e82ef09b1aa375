// What the checks of operands are said with.
#pragma once

#include "base/error.h"
#include "kernels/lookup_table.h"
#include "kernels/memory.h"

namespace roundhouse {

// Groups of a row of `cols` weights; the last one may be shorter. Throws Error for a group without columns.
inline std::int64_t groups_of(std::int64_t cols, std::int64_t group_size) {
  require(group_size > 0, "a group has at least one column");
  return cols / group_size + (cols % group_size != 0 ? 1 : 0);
}

inline bool has_shape(const ConstMatrix& m, std::int64_t rows, std::int64_t cols) {
  return m.rows == rows && m.cols == cols;
}
inline bool has_shape(const ConstMatrix& m, std::int64_t rows, std::int64_t cols, DType type) {
  return has_shape(m, rows, cols) && m.type == type;
}
inline bool same_shape(const ConstMatrix& a, const ConstMatrix& b) {
  return has_shape(a, b.rows, b.cols);
}
inline bool alike(const ConstMatrix& a, const ConstMatrix& b) {
  return same_shape(a, b) && a.type == b.type;
}

inline bool is_empty(const SparseRows& m) { return m.columns.cols == 0; }
inline void check_sparse(const SparseRows& m, std::int64_t rows) {
  require(is_empty(m) || (has_shape(m.starts, 1, rows + 1, DType::kI32) &&
                          has_shape(m.columns, 1, m.columns.cols, DType::kI32) &&
                          has_shape(m.values, 1, m.columns.cols, DType::kF32)),
          "a sparse matrix has another shape or type");
}

}  // namespace roundhouse
