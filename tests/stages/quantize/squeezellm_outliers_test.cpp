#include "stages/quantize/squeezellm/outliers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/numerical_error.h"
#include "base/random.h"
#include "kernels/backend.h"

namespace roundhouse {
namespace {

std::vector<float> random_values(std::size_t count, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> values(count);
  for (float& value : values) value = static_cast<float>(random.normal());
  return values;
}

ConstMatrix row_of(std::span<const float> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  return {values.data(), DType::kF32, 1, count, count};
}

// As `ranks` ranks would that have parts of the values; the last one may have nothing.
float select(const std::vector<float>& values, bool magnitude, std::int64_t rank,
             std::size_t ranks) {
  const auto backend = make_backend("cpu", {.threads = 1});
  std::vector<KeySelection> selections(ranks, KeySelection(magnitude, rank));
  while (!selections[0].done()) {
    const std::size_t part = values.size() / std::max<std::size_t>(1, ranks - 1);
    for (std::size_t r = 0; r < ranks; ++r) {
      selections[r].begin_round();
      const std::size_t begin = std::min(values.size(), r * part);
      const std::size_t end = ranks == 1 ? values.size() : std::min(values.size(), (r + 1) * part);
      selections[r].count(row_of(std::span(values).subspan(begin, end - begin)), *backend);
    }
    std::vector<std::int64_t> sums(selections[0].counts().size(), 0);
    for (KeySelection& s : selections) {
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += s.counts()[i];
    }
    for (KeySelection& s : selections) {
      std::ranges::copy(sums, s.counts().begin());
      s.end_round();
    }
  }
  return selections.back().value();
}

TEST(KeySelectionTest, FindsTheSameValueAsSortingOnAnyNumberOfRanks) {
  std::vector<float> values = random_values(1000, 1);
  values[3] = values[4] = values[5] = 2.5f;
  for (const bool magnitude : {false, true}) {
    std::vector<float> sorted = values;
    if (magnitude) {
      for (float& value : sorted) value = std::abs(value);
    }
    std::ranges::sort(sorted, std::greater());
    for (const std::int64_t rank : {1, 2, 10, 500, 1000}) {
      for (const std::size_t ranks : {1, 3, 5}) {
        EXPECT_EQ(select(values, magnitude, rank, ranks), sorted[rank - 1])
            << rank << " on " << ranks;
      }
    }
  }
  EXPECT_THROW((void)select(values, true, 1001, 1), Error);
}

TEST(SensitiveRankTest, IsTheAuthorsAndMayBeNone) {
  EXPECT_EQ(sensitive_rank(1000, 0.45), 4);
  EXPECT_EQ(sensitive_rank(1000, 0.05), 0);
  EXPECT_EQ(sensitive_rank(67108864, 0.05), 33554);
}

TEST(QuartilesTest, LieBetweenNeighboursOfTheSortedValues) {
  // numpy.quantile([0, 1, 4, 9, 16, 25], [0.25, 0.75]) is [1.75, 14.25]; of [0, 1, 4] it is [0.5, 2.5], of [7] [7, 7].
  const auto quartiles = [](std::vector<float> values) {
    const auto count = static_cast<std::int64_t>(values.size());
    std::array<float, 4> at{};
    for (std::size_t i = 0; i < 4; ++i)
      at[i] = select(values, false, quartile_ranks(count).largest[i], 1);
    return quartiles_of(count, at);
  };
  const Quartiles six = quartiles({16, 0, 25, 4, 9, 1});
  EXPECT_EQ(six.q1, 1.75);
  EXPECT_EQ(six.q3, 14.25);
  const Quartiles three = quartiles({4, 0, 1});
  EXPECT_EQ(three.q1, 0.5);
  EXPECT_EQ(three.q3, 2.5);
  EXPECT_EQ(quartiles({7}).q1, 7);
  EXPECT_EQ(quartiles({7}).q3, 7);
}

TEST(OutlierThresholdTest, IsSymmetricAroundZero) {
  EXPECT_EQ(outlier_threshold({-1.0, 2.0}, 2.0), 8.0f);
  EXPECT_EQ(outlier_threshold({-3.0, 1.0}, 1.5), 9.0f);
}

TEST(OutlierFactorTest, LeavesNoMoreThanTheTargetOverAllMatricesAndHardlyLess) {
  const auto backend = make_backend("cpu", {.threads = 2});
  std::vector<std::vector<float>> matrices{random_values(40000, 2), random_values(10000, 3)};
  for (float& value : matrices[1]) value *= 0.01f * value * value;  // another scale, and tails
  std::vector<Quartiles> quartiles;
  for (const auto& m : matrices) {
    std::array<float, 4> at{};
    const QuartileRanks ranks = quartile_ranks(static_cast<std::int64_t>(m.size()));
    for (std::size_t i = 0; i < 4; ++i) at[i] = select(m, false, ranks.largest[i], 1);
    quartiles.push_back(quartiles_of(static_cast<std::int64_t>(m.size()), at));
  }
  const auto outliers_with = [&](double r) {
    std::int64_t count = 0;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      const float threshold = outlier_threshold(quartiles[i], r);
      count +=
          std::ranges::count_if(matrices[i], [&](float w) { return std::abs(w) >= threshold; });
    }
    return count;
  };
  for (const std::int64_t target : {0, 1, 200, 2500}) {
    OutlierFactor factor(target);
    try {
      while (!factor.done()) {
        for (std::size_t i = 0; i < matrices.size(); ++i) {
          backend->count_large({.w = row_of(matrices[i]),
                                .sensitivity = {},
                                .sensitive_above = 0.0f,
                                .thresholds = factor.thresholds(quartiles[i]),
                                .counts = factor.counts()});
        }
        factor.end_round();
      }
    } catch (const Error&) {
      EXPECT_GT(outliers_with(16.0), target);
      continue;
    }
    EXPECT_LE(factor.outliers(), target);
    EXPECT_EQ(factor.outliers(), outliers_with(factor.value()));
    EXPECT_GT(outliers_with(factor.value() - 0x1p-13), target);
  }
}

TEST(OutlierFactorTest, SaysSoWhereNoFactorLeavesSoFew) {
  OutlierFactor factor(3);
  std::ranges::fill(factor.counts(), 4);
  EXPECT_THROW(factor.end_round(), UnquantizableError);
}

}  // namespace
}  // namespace roundhouse
