#include "model/quantized/quantized_linear.h"

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
  for (int i = 0; i < 10; ++i)
    q.codes.as<std::uint8_t>()[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(i);
  const float scales[] = {0.5f, 1.0f, 2.0f, 0.25f, -1.0f, 4.0f};
  const int zeros[] = {0, 1, 2, 15, 8, 3};
  for (std::size_t i = 0; i < 6; ++i) {
    q.scales.as<std::uint16_t>()[i] = float_to_half(scales[i]);
    q.zeros.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(zeros[i]);
  }
  return q;
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

TEST(QuantizedLinearTest, ValidationNamesTheLinearAndTheFault) {
  EXPECT_NO_THROW(validate(example()));
  const auto error_of = [](const std::function<void(QuantizedLinear&)>& spoil) {
    QuantizedLinear q = example();
    spoil(q);
    try {
      validate(q);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("(no error)");
  };
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
}

}  // namespace
}  // namespace roundhouse
