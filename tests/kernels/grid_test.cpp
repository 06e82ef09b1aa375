#include "kernels/grid.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "base/dtype.h"
#include "base/error.h"
#include "base/random.h"
#include "kernels/grid_point.h"
#include "tests/reference/reference.h"

namespace roundhouse {
namespace {

constexpr std::array kGrids{Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound, Grid::kSymGptq,
                            Grid::kSymFull};

TEST(GridTest, HandWorkedPoints) {
  // 4 bits, weights from -1 to 2: s = 3 / 15 = 0.2, as a float16 0.199951171875; z = rne(1 / s)
  // = 5.
  GridPoint p = make_grid_point(Grid::kAsymGptq, 4, -1.0f, 2.0f);
  EXPECT_EQ(p.scale, 0.199951171875f);
  EXPECT_EQ(p.zero, 5);
  // 0 is forced inside: [1, 3] becomes [0, 3].
  p = make_grid_point(Grid::kAsymGptq, 2, 1.0f, 3.0f);
  EXPECT_EQ(p.scale, 1.0f);
  EXPECT_EQ(p.zero, 0);
  // A-awq leaves 0 outside: s = 2 / 4 ... 3 levels over [2, 5] are 1 each; z = -2, clamped to 0.
  p = make_grid_point(Grid::kAsymAwq, 2, 2.0f, 5.0f);
  EXPECT_EQ(p.scale, 1.0f);
  EXPECT_EQ(p.zero, 0);
  p = make_grid_point(Grid::kAsymAwq, 2, -5.0f, -2.0f);
  EXPECT_EQ(p.zero, 3);  // 5, clamped
  // S-gptq: s = 2 * 3 / 15 = 0.4.
  p = make_grid_point(Grid::kSymGptq, 4, -3.0f, 1.0f);
  EXPECT_EQ(p.scale, round_to_half(0.4f));
  EXPECT_EQ(p.zero, 8);
  EXPECT_EQ(make_grid_point(Grid::kSymGptq, 4, 0.0f, 3.0f).scale, round_to_half(0.4f))
      << "a group without negative weights is treated like any other";
  // S-full: the weight of the largest size is code 0.
  p = make_grid_point(Grid::kSymFull, 4, -4.0f, 3.0f);
  EXPECT_EQ(p.scale, 0.5f);
  EXPECT_EQ(code_of(-4.0f, p.scale, p.zero, 15), 0);
  p = make_grid_point(Grid::kSymFull, 4, -3.0f, 4.0f);
  EXPECT_EQ(p.scale, -0.5f);
  EXPECT_EQ(code_of(4.0f, p.scale, p.zero, 15), 0);
  EXPECT_EQ(value_of(0, p.scale, p.zero), 4.0f);
}

TEST(GridTest, GroupsOfZerosHaveAGridThatHoldsZero) {
  for (const Grid grid : kGrids) {
    const GridPoint p = make_grid_point(grid, 4, 0.0f, 0.0f);
    EXPECT_NE(p.scale, 0.0f) << name_of(grid);
    EXPECT_EQ(value_of(code_of(0.0f, p.scale, p.zero, 15), p.scale, p.zero), 0.0f) << name_of(grid);
  }
  EXPECT_EQ(make_grid_point(Grid::kAsymGptq, 4, 0.0f, 0.0f).scale, round_to_half(2.0f / 15.0f));
  EXPECT_EQ(make_grid_point(Grid::kAsymGptq, 4, 0.0f, 0.0f).zero, 8);  // rne(7.5...)
  EXPECT_EQ(make_grid_point(Grid::kAsymAutoRound, 4, 0.0f, 0.0f).scale, round_to_half(1e-5f));
  EXPECT_EQ(make_grid_point(Grid::kSymGptq, 4, 0.0f, 0.0f).scale, round_to_half(1e-5f));
  EXPECT_EQ(make_grid_point(Grid::kSymFull, 4, 0.0f, 0.0f).scale, -round_to_half(1e-5f));
  EXPECT_EQ(make_grid_point(Grid::kAsymAwq, 4, 0.0f, 0.0f).scale, round_to_half(1e-5f / 15.0f));
}

TEST(GridTest, ScalesAreNonZeroHalvesNearTheExactOnesAndZerosFollow) {
  Random random(1);
  for (int round = 0; round < 20000; ++round) {
    const double size = std::pow(10.0, -9.0 + 12.0 * random.uniform());
    const float a = static_cast<float>(random.normal() * size);
    const float b = static_cast<float>(random.normal() * size);
    const float lo = std::min(a, b);
    const float hi = std::max(a, b);
    const int bits = 2 + static_cast<int>(random.below(7));
    for (const Grid grid : kGrids) {
      const GridPoint p = make_grid_point(grid, bits, lo, hi);
      const double scale = static_cast<double>(p.scale);
      ASSERT_EQ(round_to_half(p.scale), p.scale);
      ASSERT_NE(p.scale, 0.0f);
      const double exact =
          reference::exact_scale(grid, bits, static_cast<double>(lo), static_cast<double>(hi));
      // Half a step of float16, the rounding of the quotient to float32, or the floor of 2^-24.
      const double allowed = std::max(std::abs(exact) * 0x1.001p-11, 0x1p-24);
      ASSERT_NEAR(scale, exact, allowed) << name_of(grid) << " " << bits << " " << lo << " " << hi;
      // -lo / s is rounded to float32 before it is rounded to an integer, hence the step of one
      // near a tie.
      ASSERT_NEAR(
          p.zero,
          reference::zero_for(grid, bits, static_cast<double>(lo), static_cast<double>(hi), scale),
          std::abs(std::remainder(static_cast<double>(lo) / scale, 1.0)) > 0.499 ? 1 : 0);
    }
  }
}

TEST(GridTest, RefusesWhatNoHalfCanHold) {
  EXPECT_THROW(make_grid_point(Grid::kAsymGptq, 2, -1e6f, 1e6f), Error);
  EXPECT_THROW(make_grid_point(Grid::kSymFull, 2, -131040.0f, 0.0f), Error);  // 65520 rounds up
  EXPECT_EQ(make_grid_point(Grid::kSymFull, 2, -131039.0f, 0.0f).scale, 65504.0f);
  EXPECT_THROW(make_grid_point(Grid::kAsymAwq, 4, -3e38f, 3e38f), Error);  // hi - lo overflows
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Grid grid : kGrids) {
    EXPECT_THROW(make_grid_point(grid, 4, nan, nan), Error);
    EXPECT_THROW(make_grid_point(grid, 4, 0.0f, infinity), Error);
  }
  EXPECT_THROW(make_grid_point(Grid::kAsymGptq, 9, 0.0f, 1.0f), Error);
}

TEST(GridTest, CodesRoundToEvenAndClampBeforeTheyBecomeIntegers) {
  EXPECT_EQ(code_of(0.5f, 1.0f, 0, 15), 0);
  EXPECT_EQ(code_of(1.5f, 1.0f, 0, 15), 2);
  EXPECT_EQ(code_of(-0.5f, 1.0f, 3, 15), 3);
  EXPECT_EQ(code_of(1e30f, 0x1p-24f, 3, 15), 15);
  EXPECT_EQ(code_of(-1e30f, 0x1p-24f, 3, 15), 0);
  EXPECT_EQ(code_of(std::numeric_limits<float>::infinity(), 1.0f, 3, 15), 15);
  EXPECT_EQ(code_of(std::numeric_limits<float>::quiet_NaN(), 1.0f, 3, 15), 0);
}

TEST(NearestHalfTest, EqualsTheConversionOfBase) {
  Random random(2);
  for (int i = 0; i < 1000000; ++i) {
    const float value = std::bit_cast<float>(static_cast<std::uint32_t>(random.next()));
    const float half = round_to_half(value);
    if (!std::isfinite(value)) continue;
    if (std::isfinite(half)) {
      ASSERT_EQ(nearest_half(value), half) << value;
    } else {
      ASSERT_FALSE(is_usable(nearest_half(value))) << value;
    }
  }
  for (std::uint32_t bits = 0; bits < 0x7bffu; ++bits) {  // ties
    const float middle = (half_to_float(static_cast<std::uint16_t>(bits)) +
                          half_to_float(static_cast<std::uint16_t>(bits + 1))) /
                         2;
    ASSERT_EQ(nearest_half(middle), round_to_half(middle)) << bits;
  }
}

}  // namespace
}  // namespace roundhouse
