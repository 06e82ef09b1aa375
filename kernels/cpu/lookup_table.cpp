#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sparse_row.h"
#include "kernels/operands.h"

namespace roundhouse {

void CpuBackend::run(const DequantizeTable& op) {
  const std::int64_t cols = op.codes.cols;
  const auto* const all_codes = static_cast<const std::uint8_t*>(op.codes.data);
  const float* const tables = op.tables.f32();
  for_each_range(threads_, op.codes.rows, rows_per_piece(cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   std::vector<float> w(static_cast<std::size_t>(cols));
                   for (std::int64_t row = begin; row < end; ++row) {
                     const std::uint8_t* const codes = all_codes + row * op.codes.stride;
                     const float* const table = tables + row * op.tables.stride;
                     require(*std::max_element(codes, codes + cols) < op.tables.cols,
                             "dequantize_table: a code beyond its table");
                     for (std::int64_t i = 0; i < cols; ++i) w[i] = table[codes[i]];
                     for_each_entry(op.sparse, row, cols,
                                    [&](std::int64_t column, float value) { w[column] += value; });
                     convert(DType::kF32, w.data(), op.w.type, op.w.row_range(row, row + 1).data,
                             static_cast<std::size_t>(cols));
                   }
                 });
}

}  // namespace roundhouse
