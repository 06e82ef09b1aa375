#include "base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace roundhouse {
namespace {

constexpr std::uint32_t kPatterns = 65536;

// The definition of binary16.
double half_by_definition(std::uint32_t bits) {
  const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((bits >> 10) & 31u);
  const double fraction = (bits & 0x3ffu) / 1024.0;
  if (exponent == 31) {
    return fraction == 0.0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  }
  return exponent == 0 ? sign * std::ldexp(fraction, -14)
                       : sign * std::ldexp(1.0 + fraction, exponent - 15);
}

TEST(DTypeTest, NamesAndSizesAgree) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kU8, DType::kI32,
                           DType::kI64, DType::kU32}) {
    EXPECT_EQ(dtype_from_name(name_of(type)), type);
  }
  EXPECT_EQ(size_of(DType::kBF16), 2u);
  EXPECT_EQ(size_of(DType::kI64), 8u);
  EXPECT_EQ(torch_name_of(DType::kBF16), "bfloat16");
  EXPECT_FALSE(dtype_from_name("F64").has_value());
  EXPECT_THROW(torch_name_of(DType::kU8), Error);
}

TEST(DTypeTest, EveryHalfHasTheValueOfItsDefinitionAndComesBack) {
  for (std::uint32_t bits = 0; bits < kPatterns; ++bits) {
    const std::uint16_t half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    const double want = half_by_definition(bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(half_to_float(float_to_half(value)))) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(value), want) << bits;
      ASSERT_EQ(float_to_half(value), half) << bits;
    }
  }
}

TEST(DTypeTest, RoundsToTheNearestHalfAndTiesToEven) {
  for (std::uint32_t bits = 0; bits + 1 < 0x7c00u; ++bits) {
    const float low = half_to_float(static_cast<std::uint16_t>(bits));
    const float high = half_to_float(static_cast<std::uint16_t>(bits + 1));
    const float middle = (low + high) / 2;  // exact in float
    const std::uint32_t even = bits + (bits & 1u);
    ASSERT_EQ(float_to_half(middle), even) << bits;
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), bits) << bits;
    ASSERT_EQ(float_to_half(std::nextafter(middle, 1e9f)), bits + 1) << bits;
    ASSERT_EQ(float_to_half(-middle), even | 0x8000u) << bits;
  }
  EXPECT_EQ(round_to_half(65519.0f), 65504.0f);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00u);
  EXPECT_EQ(float_to_half(-1e30f), 0xfc00u);
  EXPECT_EQ(float_to_half(std::numeric_limits<float>::infinity()), 0x7c00u);
}

TEST(DTypeTest, RoundsToTheNearestBfloat16AndTiesToEven) {
  EXPECT_EQ(float_to_bfloat16(1.0f), 0x3f80u);
  EXPECT_EQ(float_to_bfloat16(1.0f + 0x1p-8f), 0x3f80u);  // a tie: down to even
  EXPECT_EQ(float_to_bfloat16(1.0f + 0x3p-8f), 0x3f82u);  // a tie: up to even
  EXPECT_EQ(float_to_bfloat16(std::numeric_limits<float>::max()), 0x7f80u);
  EXPECT_TRUE(std::isnan(bfloat16_to_float(float_to_bfloat16(std::bit_cast<float>(0x7f800001u)))));
  for (std::uint32_t bits = 0; bits < kPatterns; ++bits) {
    const float value = bfloat16_to_float(static_cast<std::uint16_t>(bits));
    if (!std::isnan(value)) {
      ASSERT_EQ(float_to_bfloat16(value), bits);
    }
  }
}

TEST(ConvertTest, EqualsTheScalarConversionsAtAnyAddress) {
  Random random(1);
  constexpr std::size_t kCount = 1037;  // ends off every vector width
  std::vector<std::byte> from(4 * kCount + 1);
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(random.next());
    std::memcpy(from.data() + 1 + 4 * i, &bits, 4);
  }
  std::vector<std::byte> half(2 * kCount + 1);
  std::vector<std::byte> brain(2 * kCount + 1);
  std::vector<std::byte> mixed(2 * kCount + 1);
  std::vector<std::byte> back(4 * kCount + 1);
  convert(DType::kF32, from.data() + 1, DType::kF16, half.data() + 1, kCount);
  convert(DType::kF32, from.data() + 1, DType::kBF16, brain.data() + 1, kCount);
  convert(DType::kF16, half.data() + 1, DType::kBF16, mixed.data() + 1, kCount);
  convert(DType::kF16, half.data() + 1, DType::kF32, back.data() + 1, kCount);
  for (std::size_t i = 0; i < kCount; ++i) {
    float value, back_value;
    std::uint16_t h, b, m;
    std::memcpy(&value, from.data() + 1 + 4 * i, 4);
    std::memcpy(&h, half.data() + 1 + 2 * i, 2);
    std::memcpy(&b, brain.data() + 1 + 2 * i, 2);
    std::memcpy(&m, mixed.data() + 1 + 2 * i, 2);
    std::memcpy(&back_value, back.data() + 1 + 4 * i, 4);
    EXPECT_EQ(h, float_to_half(value));
    EXPECT_EQ(b, float_to_bfloat16(value));
    EXPECT_EQ(m, float_to_bfloat16(half_to_float(h)));
    EXPECT_EQ(std::bit_cast<std::uint32_t>(back_value),
              std::bit_cast<std::uint32_t>(half_to_float(h)));
  }
}

TEST(ConvertTest, CopiesEqualTypesAndTakesNothing) {
  const std::uint16_t from[2] = {0x7c01u, 0x1234u};  // a signalling NaN stays as it is
  std::uint16_t to[2] = {};
  convert(DType::kBF16, from, DType::kBF16, to, 2);
  EXPECT_EQ(to[0], from[0]);
  EXPECT_EQ(to[1], from[1]);
  convert(DType::kF32, nullptr, DType::kF16, nullptr, 0);
  EXPECT_THROW(convert(DType::kI32, from, DType::kF16, to, 1), Error);
}

}  // namespace
}  // namespace roundhouse
