#include "kernels/quantized_product.h"

#include <algorithm>

#include "base/error.h"
#include "tests/kernels/backend_test.h"
#include "tests/reference/lookup_table.h"

namespace roundhouse {
namespace {

using QuantizedProductTest = BackendTest;
using reference::Matrix;

Matrix random_codes(std::int64_t rows, std::int64_t cols, int below, std::uint64_t seed) {
  Random random(seed);
  Matrix m(rows, cols);
  for (double& code : m.values)
    code = static_cast<double>(random.below(static_cast<std::uint64_t>(below)));
  return m;
}

Tensor pack(Backend& backend, const Matrix& codes, int bits) {
  Wide device(backend, codes, DType::kU8);
  Tensor packed(backend, DType::kU32, codes.rows, packed_words_of_row(codes.cols, bits));
  backend.pack_codes({.codes = device, .bits = bits, .packed = packed.view()});
  return packed;
}

std::vector<std::uint32_t> words_of(Backend& backend, const Tensor& packed) {
  std::vector<std::uint32_t> words(packed.bytes() / 4);
  backend.download(packed.view().data, std::as_writable_bytes(std::span(words)));
  return words;
}

TEST_P(QuantizedProductTest, CodesArePackedFromTheLowestBitUpAndUnitsAreFilledWithZeros) {
  Matrix codes(2, 33);
  for (std::int64_t j = 0; j < 33; ++j) codes(0, j) = codes(1, j) = static_cast<double>(j % 8);
  codes(0, 32) = 5.0;
  EXPECT_EQ(words_of(backend(), pack(backend(), codes, 3)),
            (std::vector<std::uint32_t>{0x88fac688, 0xc688fac6, 0xfac688fa, 5, 0, 0, 0x88fac688,
                                        0xc688fac6, 0xfac688fa, 0, 0, 0}));
  Matrix few(1, 9);
  few.values = {0, 1, 2, 3, 3, 2, 1, 0, 2};
  EXPECT_EQ(words_of(backend(), pack(backend(), few, 2)), (std::vector<std::uint32_t>{0x21be4, 0}));
  EXPECT_EQ(words_of(backend(), pack(backend(), few, 4)),
            (std::vector<std::uint32_t>{0x01233210, 2, 0, 0}));
}

struct Shape {
  std::int64_t vectors, cols, rows;
};
constexpr std::array<Shape, 7> kShapes{
    {{1, 1, 1}, {1, 33, 5}, {3, 256, 19}, {1, 1000, 35}, {2, 4128, 7}, {0, 64, 3}, {1, 64, 0}}};

// In which a backend takes x; the CPU all of them.
std::vector<Layout> vector_layouts() {
  return {{DType::kF32, 3}, {DType::kBF16, 8}, {DType::kF16, 8}, {DType::kBF16, 3}};
}

TEST_P(QuantizedProductTest, UniformWeightsGiveTheProductOfTheirValues) {
  for (const auto& [vectors, cols, rows] : kShapes) {
    for (const int bits : {2, 3, 4}) {
      const Matrix codes = random_codes(rows, cols, 1 << bits, 1);
      const Tensor packed = pack(backend(), codes, bits);
      for (const std::int64_t group_size : {std::int64_t{32}, std::int64_t{128}, cols}) {
        const std::int64_t groups = (cols + group_size - 1) / group_size;
        const Matrix scales = rounded(DType::kF16, random_matrix(rows, groups, 2, 0.01));
        const Matrix zeros = random_codes(rows, groups, 1 << bits, 3);
        Wide device_scales(backend(), scales, DType::kF16),
            device_zeros(backend(), zeros, DType::kU8);
        for (const Layout& layout : vector_layouts()) {
          const Matrix x = rounded(layout.type, random_matrix(vectors, cols, 4));
          Wide device_x(backend(), x, layout);
          Wide y(backend(), constant_matrix(vectors, rows, std::nan("")), layout);
          backend().multiply_uniform({.x = device_x,
                                      .packed = packed.view(),
                                      .bits = bits,
                                      .group_size = group_size,
                                      .scales = device_scales,
                                      .zeros = device_zeros,
                                      .y = y});
          const Matrix w = reference::dequantize(codes, scales, zeros, group_size);
          expect_near(download(backend(), y), reference::product(x, reference::transpose(w)),
                      layout.type == DType::kF16 ? 0x1p-10 : tolerance(layout.type, 3e-6),
                      std::to_string(bits) + " bits, groups of " + std::to_string(group_size));
        }
      }
    }
  }
}

TEST_P(QuantizedProductTest, TablesAndASparsePartGiveTheProductOfTheirSum) {
  for (const auto& [vectors, cols, rows] : kShapes) {
    std::vector<reference::Entry> entries;
    std::vector<std::int64_t> starts{0}, columns;
    Matrix values(1, 0);
    Random random(5);
    for (std::int64_t row = 0; row < rows;
         ++row) {  // none, few, and one row with an entry in every column
      for (std::int64_t column = 0; row % 4 != 0 && column < cols; ++column) {
        if (row != 1 && random.uniform() > 0.02) continue;
        entries.push_back({row, column, static_cast<double>(static_cast<float>(random.normal()))});
        columns.push_back(column);
        values.values.push_back(entries.back().value);
      }
      starts.push_back(static_cast<std::int64_t>(columns.size()));
    }
    values.cols = static_cast<std::int64_t>(columns.size());
    const Tensor device_starts = upload_index(starts, backend()),
                 device_columns = upload_index(columns, backend());
    Wide device_values(backend(), values);
    for (const int bits : {2, 3, 4}) {
      const Matrix codes = random_codes(rows, cols, 1 << bits, 6);
      const Matrix tables = random_matrix(rows, std::int64_t{1} << bits, 7);
      const Tensor packed = pack(backend(), codes, bits);
      Wide device_tables(backend(), tables);
      for (const Layout& layout : vector_layouts()) {
        for (const bool with_sparse : {true, false}) {
          const Matrix x = rounded(layout.type, random_matrix(vectors, cols, 8));
          Wide device_x(backend(), x, layout);
          Wide y(backend(), constant_matrix(vectors, rows, std::nan("")), layout);
          backend().multiply_table({.x = device_x,
                                    .packed = packed.view(),
                                    .bits = bits,
                                    .tables = device_tables,
                                    .sparse = with_sparse
                                                  ? SparseRows{device_starts.view(),
                                                               device_columns.view(), device_values}
                                                  : SparseRows{},
                                    .y = y});
          const Matrix w = reference::dequantize_table(
              codes, tables, with_sparse ? entries : std::vector<reference::Entry>{});
          expect_near(download(backend(), y), reference::product(x, reference::transpose(w)),
                      layout.type == DType::kF16 ? 0x1p-10 : tolerance(layout.type, 3e-6),
                      std::to_string(bits) + " bits, " + std::to_string(cols) + " columns");
        }
      }
    }
  }
}

TEST_P(QuantizedProductTest, SameBitsWithAnyThreads) {
  const Matrix codes = random_codes(100, 600, 8, 9), tables = random_matrix(100, 8, 10),
               x = random_matrix(1, 600, 11);
  expect_same_bits_with_any_threads([&](Backend& other) {
    const Tensor packed = pack(other, codes, 3);
    Wide device_tables(other, tables), device_x(other, x), y(other, Matrix(1, 100));
    other.multiply_table({.x = device_x,
                          .packed = packed.view(),
                          .bits = 3,
                          .tables = device_tables,
                          .sparse = {},
                          .y = y});
    return download(other, y);
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizedProductTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
