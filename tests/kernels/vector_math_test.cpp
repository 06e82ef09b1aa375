#include "kernels/cpu/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace roundhouse {
namespace {

TEST(FastExpTest, IsWithinOneUnitInTheLastPlaceOrSo) {
  double worst = 0.0;
  for (float x = -87.3f; x < 88.7f; x += 0.00091f) {
    const double exact = std::exp(static_cast<double>(x));
    const float rounded = static_cast<float>(exact);
    const double unit =
        static_cast<double>(std::nextafter(rounded, std::numeric_limits<float>::infinity())) -
        static_cast<double>(rounded);
    worst = std::max(worst, std::abs(static_cast<double>(fast_exp(x)) - exact) / unit);
  }
  EXPECT_LT(worst, 1.5);
}

TEST(FastExpTest, EndsAsItShould) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(fast_exp(0.0f), 1.0f);
  EXPECT_EQ(fast_exp(-infinity), 0.0f);
  EXPECT_EQ(fast_exp(-1e30f), 0.0f);
  EXPECT_EQ(fast_exp(infinity), infinity);
  EXPECT_EQ(fast_exp(88.8f), infinity);
  EXPECT_LT(fast_exp(88.7f), infinity);
  EXPECT_TRUE(std::isnan(fast_exp(std::numeric_limits<float>::quiet_NaN())));
  EXPECT_NEAR(fast_exp(-100.0f), std::exp(-100.0), 2e-45) << "subnormal results";
}

TEST(FastTanhTest, IsWithinThreeUnitsInTheLastPlace) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (float x = 1e-6f; x < 30.0f; x *= 1.0007f) {
    const double exact = std::tanh(static_cast<double>(x));
    ASSERT_NEAR(static_cast<double>(fast_tanh(x)), exact, 3.0 * 0x1p-24 * exact) << x;
    ASSERT_EQ(fast_tanh(-x), -fast_tanh(x)) << x;
  }
  EXPECT_EQ(fast_tanh(0.0f), 0.0f);
  EXPECT_EQ(fast_tanh(infinity), 1.0f);
  EXPECT_EQ(fast_tanh(-infinity), -1.0f);
  EXPECT_TRUE(std::isnan(fast_tanh(std::numeric_limits<float>::quiet_NaN())));
}

TEST(FastPowTest, IsAccurateOverTheRangeOfRoundingErrors) {
  for (const float power : {0.5f, 1.0f, 2.0f, 2.4f}) {
    for (float x = 1e-12f; x < 1e3f; x *= 1.0007f) {
      const double exact = std::pow(static_cast<double>(x), static_cast<double>(power));
      // The logarithm, up to 40, times the power is a float32 of which the exponential shows the
      // absolute error.
      ASSERT_NEAR(static_cast<double>(fast_pow(x, power)), exact, 1e-5 * exact)
          << x << " " << power;
    }
    EXPECT_EQ(fast_pow(0.0f, power), 0.0f);
    EXPECT_EQ(fast_pow(1.0f, power), 1.0f);
  }
}

}  // namespace
}  // namespace roundhouse
