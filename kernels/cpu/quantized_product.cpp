// Plain: a row is unpacked, and multiplied in double.
#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/sparse_row.h"
#include "kernels/packed_unit.h"

namespace roundhouse {
namespace {

const std::uint32_t* words_of(const ConstMatrix& packed, std::int64_t row) {
  return static_cast<const std::uint32_t*>(packed.data) + row * packed.stride;
}

// fill(row, w) gives the values of a row of weights.
template <class Product, class Fill>
void multiply_rows(ThreadPool& threads, const Product& op, const Fill& fill) {
  const std::int64_t cols = op.x.cols;
  const auto width = static_cast<std::size_t>(cols);
  std::vector<float> x(static_cast<std::size_t>(op.x.rows) * width);
  for (std::int64_t i = 0; i < op.x.rows; ++i) {
    convert(op.x.type, op.x.row_range(i, i + 1).data, DType::kF32, x.data() + i * cols, width);
  }
  for_each_range(
      threads, op.packed.rows, rows_per_piece(cols), [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> w(width);
        for (std::int64_t row = begin; row < end; ++row) {
          fill(row, w);
          for (std::int64_t i = 0; i < op.x.rows; ++i) {
            double sum = 0.0;
            for (std::size_t column = 0; column < width; ++column) {
              sum += static_cast<double>(w[column]) *
                     static_cast<double>(x[static_cast<std::size_t>(i) * width + column]);
            }
            const float y = static_cast<float>(sum);
            convert(DType::kF32, &y, op.y.type,
                    op.y.row_range(i, i + 1).col_range(row, row + 1).data, 1);
          }
        }
      });
}

}  // namespace

void CpuBackend::run(const PackCodes& op) {
  for_each_range(threads_, op.codes.rows, rows_per_piece(op.codes.cols),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t row = begin; row < end; ++row) {
                     const auto* const codes =
                         static_cast<const std::uint8_t*>(op.codes.data) + row * op.codes.stride;
                     auto* const words =
                         static_cast<std::uint32_t*>(op.packed.data) + row * op.packed.stride;
                     std::fill(words, words + op.packed.cols, 0u);
                     with_packed_bits(op.bits, [&](auto bits) {
                       for (std::int64_t i = 0; i < op.codes.cols; ++i) {
                         put_in_unit<bits()>(words + i / kPackedUnit * bits(),
                                             static_cast<int>(i % kPackedUnit), codes[i]);
                       }
                     });
                   }
                 });
}

void CpuBackend::run(const UniformProduct& op) {
  multiply_rows(threads_, op, [&](std::int64_t row, std::vector<float>& w) {
    const auto* const scales =
        static_cast<const std::uint16_t*>(op.scales.data) + row * op.scales.stride;
    const auto* const zeros =
        static_cast<const std::uint8_t*>(op.zeros.data) + row * op.zeros.stride;
    const std::uint32_t* const words = words_of(op.packed, row);
    with_packed_bits(op.bits, [&](auto bits) {
      for (std::int64_t i = 0; i < op.x.cols; ++i) {
        const int code = static_cast<int>(code_in_unit<bits()>(words + i / kPackedUnit * bits(),
                                                               static_cast<int>(i % kPackedUnit)));
        const std::int64_t group = i / op.group_size;
        w[i] = value_of(code, half_to_float(scales[group]), zeros[group]);
      }
    });
  });
}

void CpuBackend::run(const TableProduct& op) {
  multiply_rows(threads_, op, [&](std::int64_t row, std::vector<float>& w) {
    const float* const table = op.tables.f32() + row * op.tables.stride;
    const std::uint32_t* const words = words_of(op.packed, row);
    with_packed_bits(op.bits, [&](auto bits) {
      for (std::int64_t i = 0; i < op.x.cols; ++i) {
        w[i] = table[code_in_unit<bits()>(words + i / kPackedUnit * bits(),
                                          static_cast<int>(i % kPackedUnit))];
      }
    });
    for_each_entry(op.sparse, row, op.x.cols,
                   [&](std::int64_t column, float value) { w[column] += value; });
  });
}

}  // namespace roundhouse
