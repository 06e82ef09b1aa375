// Clustering of a row and products with quantized weights, plainly and in double precision.
#pragma once

#include "tests/reference/reference.h"

namespace roundhouse::reference {

// The least sum of sensitivity (w - centre)² over all sets of `clusters` centres: dynamic programming over every split of the
// sorted row.
double least_cluster_error(const Matrix& w, const Matrix& sensitivity, std::int64_t row,
                           int clusters);

// Row by row: sum of sensitivity (w - table[code])².
std::vector<double> table_errors(const Matrix& w, const Matrix& sensitivity, const Matrix& tables,
                                 const Matrix& codes);

struct Entry {
  std::int64_t row, column;
  double value;
};
// table[code], plus the entries.
Matrix dequantize_table(const Matrix& codes, const Matrix& tables,
                        const std::vector<Entry>& sparse);
// scale (code - zero)
Matrix dequantize(const Matrix& codes, const Matrix& scales, const Matrix& zeros,
                  std::int64_t group_size);

}  // namespace roundhouse::reference
