#include "model/quantized/quantized_linear.h"

#include <algorithm>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Two rows of five columns in groups of two: the last group has one column.
QuantizedLinear example() {
  QuantizedLinear q;
  q.name = "mlp.up_proj";
  q.bits = 4;
  q.grid = Grid::kAsymGptq;
  q.rows = 2;
  q.cols = 5;
  q.group_size = 2;
  q.codes = HostTensor(DType::kU8, {2, 5});
  q.scales = HostTensor(DType::kF16, {2, 3});
  q.zeros = HostTensor(DType::kU8, {2, 3});
  for (int i = 0; i < 10; ++i) q.codes.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(i);
  const float scales[] = {0.5f, 1.0f, 2.0f, 0.25f, -1.0f, 4.0f};
  const int zeros[] = {0, 1, 2, 15, 8, 3};
  for (std::size_t i = 0; i < 6; ++i) {
    q.scales.as<std::uint16_t>()[i] = float_to_half(scales[i]);
    q.zeros.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(zeros[i]);
  }
  return q;
}

HostTensor halves(Shape shape, const std::vector<float>& values) {
  HostTensor tensor(DType::kF16, std::move(shape));
  for (std::size_t i = 0; i < values.size(); ++i)
    tensor.as<std::uint16_t>()[i] = float_to_half(values[i]);
  return tensor;
}

HostTensor integers(const std::vector<std::int32_t>& values) {
  HostTensor tensor(DType::kI32, {static_cast<std::int64_t>(values.size())});
  std::ranges::copy(values, tensor.as<std::int32_t>().begin());
  return tensor;
}

// Two rows of five columns, four values a row.
QuantizedLinear table_example() {
  QuantizedLinear q = example();
  q.bits = 2;
  for (std::uint8_t& code : q.codes.as<std::uint8_t>()) code %= 4;  // 0 1 2 3 0, 1 2 3 0 1
  q.group_size = 5;
  q.scales = q.zeros = {};
  q.table = halves({2, 4}, {-1, -0.5f, 0.25f, 3, 10, 20, 30, 40});
  return q;
}

// Row 0: columns 1 and 4; row 1: none.
SparsePart sparse_example() {
  return {.offsets = integers({0, 2, 2}),
          .columns = integers({1, 4}),
          .values = halves({2}, {8, -0.125f})};
}

std::vector<float> values_of(const QuantizedLinear& q) {
  const auto backend = make_backend("cpu", {});
  const Tensor w = dequantize(q, *backend);
  EXPECT_EQ(w.rows(), q.rows);
  EXPECT_EQ(w.cols(), q.cols);
  std::vector<float> values(static_cast<std::size_t>(q.rows * q.cols));
  backend->download(w.view().data, std::as_writable_bytes(std::span(values)));
  return values;
}

TEST(QuantizedLinearTest, DequantizesByHand) {
  // 0.5 (0-0), 0.5 (1-0), 1 (2-1), 1 (3-1), 2 (4-2); 0.25 (5-15), 0.25 (6-15), -1 (7-8), -1 (8-8),
  // 4 (9-3)
  EXPECT_THAT(values_of(example()), ElementsAre(0, 0.5, 1, 2, 4, -2.5, -2.25, 1, 0, 24));
}

TEST(QuantizedLinearTest, ColumnsMayBelongToAnyGroup) {
  QuantizedLinear q = example();
  q.group_of_column = HostTensor(DType::kI32, {5});
  const int groups[] = {2, 0, 1, 0, 2};
  for (std::size_t i = 0; i < 5; ++i) q.group_of_column.as<std::int32_t>()[i] = groups[i];
  EXPECT_NO_THROW(validate(q));
  // 2 (0-2), 0.5 (1-0), 1 (2-1), 0.5 (3-0), 2 (4-2); 4 (5-3), 0.25 (6-15), -1 (7-8), 0.25 (8-15), 4
  // (9-3)
  EXPECT_THAT(values_of(q), ElementsAre(-4, 0.5, 1, 1.5, 4, 8, -2.25, 1, -1.75, 24));
}

TEST(QuantizedLinearTest, OneGroupARow) {
  QuantizedLinear q = example();
  q.group_size = 5;
  EXPECT_EQ(q.groups(), 1);
  q.scales = HostTensor(DType::kF16, {2, 1});
  q.zeros = HostTensor(DType::kU8, {2, 1});
  for (auto& bits : q.scales.as<std::uint16_t>()) bits = float_to_half(2);
  EXPECT_THAT(values_of(q), ElementsAre(0, 2, 4, 6, 8, 10, 12, 14, 16, 18));
}

TEST(QuantizedLinearTest, EachRowHasItsTable) {
  EXPECT_NO_THROW(validate(table_example()));
  EXPECT_THAT(values_of(table_example()), ElementsAre(-1, -0.5, 0.25, 3, -1, 20, 30, 40, 10, 20));
}

TEST(QuantizedLinearTest, ASparsePartComesOnTop) {
  QuantizedLinear q = table_example();
  q.sparse = sparse_example();
  EXPECT_NO_THROW(validate(q));
  EXPECT_THAT(values_of(q), ElementsAre(-1, 7.5, 0.25, 3, -1.125, 20, 30, 40, 10, 20));
  q = example();
  q.sparse = sparse_example();
  EXPECT_NO_THROW(validate(q));
  EXPECT_THAT(values_of(q), ElementsAre(0, 8.5, 1, 2, 3.875, -2.5, -2.25, 1, 0, 24));
  q.sparse.offsets = integers({0, 0, 0});  // a part without entries
  q.sparse.columns = HostTensor(DType::kI32, {0});
  q.sparse.values = HostTensor(DType::kF16, {0});
  EXPECT_NO_THROW(validate(q));
  EXPECT_EQ(values_of(q), values_of(example()));
}

TEST(QuantizedLinearTest, RowsOnTheHostAreThoseOfTheDevice) {
  for (QuantizedLinear q : {example(), table_example()}) {
    for (const bool sparse : {false, true}) {
      if (sparse) q.sparse = sparse_example();
      const std::vector<float> device = values_of(q);
      DequantizedRows rows(q);
      for (const std::size_t row : {1, 0}) {
        EXPECT_TRUE(std::ranges::equal(rows.values(static_cast<std::int64_t>(row)),
                                       std::span(device).subspan(row * 5, 5)));
      }
    }
  }
}

TEST(QuantizedLinearTest, CountsTheSparsePartApart) {
  // 10 weights. Codes 4 bits each; 6 groups of a scale of 16 and a zero point of 4 bits.
  EXPECT_DOUBLE_EQ(bits_per_weight({example()}).dense, (10 * 4 + 6 * 20) / 10.0);
  EXPECT_EQ(bits_per_weight({example()}).sparse, 0);
  QuantizedLinear q = table_example();
  q.sparse = sparse_example();
  // 2-bit codes, two tables of four values; three offsets, two columns, two values.
  EXPECT_DOUBLE_EQ(bits_per_weight({q}).dense, (10 * 2 + 8 * 16) / 10.0);
  EXPECT_DOUBLE_EQ(bits_per_weight({q}).sparse, (3 * 32 + 2 * 48) / 10.0);
  const BitsPerWeight both = bits_per_weight({q, example()});
  EXPECT_DOUBLE_EQ(both.dense, (148 + 160) / 20.0);
  EXPECT_DOUBLE_EQ(both.sparse, 192 / 20.0);
}

TEST(QuantizedLinearTest, ValidationNamesTheLinearAndTheFault) {
  EXPECT_NO_THROW(validate(example()));
  const auto error_from = [](QuantizedLinear q,
                             const std::function<void(QuantizedLinear&)>& spoil) {
    spoil(q);
    try {
      validate(q);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("(no error)");
  };
  const auto error_of = [&](const auto& spoil) { return error_from(example(), spoil); };
  using Q = QuantizedLinear&;
  EXPECT_THAT(error_of([](Q q) { q.bits = 0; }), HasSubstr("mlp.up_proj: bits"));
  EXPECT_THAT(error_of([](Q q) { q.bits = 9; }), HasSubstr("mlp.up_proj: bits"));
  EXPECT_THAT(error_of([](Q q) { q.bits = 3; }), HasSubstr("a code of more than 3 bits"));
  EXPECT_THAT(error_of([](Q q) { q.rows = -2; }), HasSubstr("rows"));
  EXPECT_THAT(error_of([](Q q) { q.group_size = 0; }), HasSubstr("group_size"));
  EXPECT_THAT(error_of([](Q q) { q.group_size = 6; }), HasSubstr("group_size"));
  EXPECT_THAT(error_of([](Q q) { q.group_size = 1; }), HasSubstr("scales"));
  EXPECT_THAT(error_of([](Q q) { q.codes = HostTensor(DType::kU8, {5, 2}); }), HasSubstr("codes"));
  EXPECT_THAT(error_of([](Q q) { q.codes = HostTensor(DType::kI32, {2, 5}); }), HasSubstr("codes"));
  EXPECT_THAT(error_of([](Q q) {
                q.scales = HostTensor(DType::kF32, {2, 3});
              }),
              HasSubstr("scales"));
  EXPECT_THAT(error_of([](Q q) { q.zeros = HostTensor(DType::kU8, {3, 2}); }), HasSubstr("zeros"));
  EXPECT_THAT(error_of([](Q q) { q.zeros.as<std::uint8_t>()[0] = 16; }), HasSubstr("zero point"));
  EXPECT_THAT(error_of([](Q q) { q.scales.as<std::uint16_t>()[4] = 0; }), HasSubstr("scale"));
  EXPECT_THAT(error_of([](Q q) { q.scales.as<std::uint16_t>()[4] = 0x7c00; }), HasSubstr("scale"));
  EXPECT_THAT(error_of([](Q q) { q.scales.as<std::uint16_t>()[4] = 0x7e00; }), HasSubstr("scale"));
  EXPECT_THAT(error_of([](Q q) { q.grid = Grid::kSymFull; }), HasSubstr("symmetric"));
  EXPECT_THAT(error_of([](Q q) { q.group_of_column = HostTensor(DType::kI32, {4}); }),
              HasSubstr("group_of_column"));
  EXPECT_THAT(error_of([](Q q) {
                q.group_of_column = HostTensor(DType::kI32, {5});
                q.group_of_column.as<std::int32_t>()[3] = 3;
              }),
              HasSubstr("a group that is not there"));

  const auto error_of_table = [&](const auto& spoil) { return error_from(table_example(), spoil); };
  EXPECT_THAT(error_of_table([](Q q) { q.bits = 3; }), HasSubstr("table must be F16"));
  EXPECT_THAT(error_of_table([](Q q) { q.bits = 8; }), HasSubstr("2, 3 or 4 bits"));
  EXPECT_THAT(error_of_table([](Q q) { q.codes.as<std::uint8_t>()[7] = 4; }),
              HasSubstr("a code of more than 2 bits"));
  EXPECT_THAT(error_of_table([](Q q) {
                q.table = HostTensor(DType::kF32, {2, 4});
              }),
              HasSubstr("table must be F16"));
  EXPECT_THAT(error_of_table([](Q q) { q.table.as<std::uint16_t>()[5] = 0x7c00; }),
              HasSubstr("up_proj: a value of its table that is not finite"));
  EXPECT_THAT(error_of_table([](Q q) { q.scales = example().scales; }), HasSubstr("and a grid"));
  EXPECT_THAT(error_of_table([](Q q) { q.group_size = 2; }), HasSubstr("and a grid"));

  const auto error_of_sparse = [&](const std::function<void(SparsePart&)>& spoil) {
    QuantizedLinear q = table_example();
    q.sparse = sparse_example();
    return error_from(q, [&](Q wrong) { spoil(wrong.sparse); });
  };
  using S = SparsePart&;
  EXPECT_THAT(error_of_sparse([](S s) {
                s.offsets = integers({0, 2});
              }),
              HasSubstr("mlp.up_proj: sparse part: offsets must be I32"));
  EXPECT_THAT(error_of_sparse([](S s) { s.offsets = HostTensor(DType::kI64, {3}); }),
              HasSubstr("offsets must be I32"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.offsets = integers({1, 2, 2});
              }),
              HasSubstr("begin with 0"));
  EXPECT_THAT(error_of_sparse([](S s) { s.offsets = integers({0, 3, 2}); }), HasSubstr("not fall"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.offsets = integers({0, -1, 2});
              }),
              HasSubstr("not fall"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.offsets = integers({0, 2, 3});
              }),
              HasSubstr("columns must"));
  EXPECT_THAT(error_of_sparse([](S s) { s.values = halves({1}, {1}); }), HasSubstr("values must"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.columns = integers({4, 1});
              }),
              HasSubstr("row 0: columns must ascend"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.columns = integers({1, 1});
              }),
              HasSubstr("row 0: columns must ascend"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.columns = integers({-1, 1});
              }),
              HasSubstr("a column that is not there"));
  EXPECT_THAT(error_of_sparse([](S s) {
                s.columns = integers({1, 5});
              }),
              HasSubstr("a column that is not there"));
  EXPECT_THAT(error_of_sparse([](S s) { s.values.as<std::uint16_t>()[1] = 0xfe00; }),
              HasSubstr("row 0 has a value that is not finite"));
  EXPECT_THAT(error_of_table([](Q q) { q.sparse.columns = integers({1}); }),
              HasSubstr("a sparse part without offsets"));
}

}  // namespace
}  // namespace roundhouse
