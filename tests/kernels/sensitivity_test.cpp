#include "kernels/sensitivity.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "kernels/float_key.h"
#include "kernels/grid_point.h"
#include "tests/kernels/backend_test.h"
#include "tests/reference/lookup_table.h"

namespace roundhouse {
namespace {

using SensitivityTest = BackendTest;
using reference::Matrix;

constexpr float kNone = std::numeric_limits<float>::infinity();

TEST_P(SensitivityTest, FisherSumsAreOfTheSquaredGradientOfEachSequence) {
  constexpr std::int64_t kOut = 21, kIn = 40, kTokens = 9;
  for (const Layout& layout : layouts(backend())) {
    Wide fisher(backend(), Matrix(kOut, kIn), {DType::kF32, layout.extra});
    Wide gradient(backend(), constant_matrix(kOut, kIn, std::nan("")), {DType::kF32, layout.extra});
    Matrix want(kOut, kIn);
    for (const std::uint64_t sequence : {1, 2, 3}) {
      const Matrix dy = rounded(layout.type, random_matrix(kTokens, kOut, sequence, 1e-3));
      const Matrix x = rounded(layout.type, random_matrix(kTokens, kIn, sequence + 10));
      Wide device_dy(backend(), dy, layout), device_x(backend(), x, layout);
      backend().matmul({.a = device_dy, .transpose_a = true, .b = device_x, .c = gradient});
      backend().add_gradient({.gradient = gradient, .sum = {}, .squares = fisher});
      const Matrix dw = reference::product(reference::transpose(dy), x);
      for (std::size_t i = 0; i < want.values.size(); ++i)
        want.values[i] += dw.values[i] * dw.values[i];
    }
    expect_near(download(backend(), fisher), want, 1e-5);
  }
}

// Grids of several widths for one matrix, and the values that it has on them.
struct Rounded {
  Rounded(Backend& backend, const Matrix& w, std::int64_t group_size, std::vector<int> widths)
      : bits(std::move(widths)) {
    const std::int64_t groups = (w.cols + group_size - 1) / group_size;
    for (const int b : bits) {
      Matrix s(w.rows, groups), z(w.rows, groups), v(w.rows, w.cols);
      for (std::int64_t i = 0; i < w.rows; ++i) {
        for (std::int64_t j = 0; j < w.cols; ++j) {
          const std::int64_t first = j / group_size * group_size,
                             end = std::min(w.cols, first + group_size);
          const auto [lo, hi] = std::minmax_element(w.values.begin() + i * w.cols + first,
                                                    w.values.begin() + i * w.cols + end);
          const GridPoint p =
              make_grid_point(Grid::kAsymAwq, b, static_cast<float>(*lo), static_cast<float>(*hi));
          s(i, j / group_size) = static_cast<double>(p.scale);
          z(i, j / group_size) = p.zero;
          const int code = code_of(static_cast<float>(w(i, j)), p.scale, p.zero, (1 << b) - 1);
          v(i, j) = static_cast<double>(value_of(code, p.scale, p.zero));
        }
      }
      scales.push_back(std::make_unique<Wide>(backend, s));
      zeros.push_back(std::make_unique<Wide>(backend, z, DType::kU8));
      values.push_back(std::move(v));
    }
  }
  std::vector<RoundingWidth> widths(float kept_above) const {
    std::vector<RoundingWidth> all;
    for (std::size_t i = 0; i < bits.size(); ++i) {
      all.push_back({.bits = bits[i],
                     .scales = *scales[i],
                     .zeros = *zeros[i],
                     .kept_above = i == 0 ? kept_above : kNone});
    }
    return all;
  }
  std::vector<int> bits;
  std::vector<std::unique_ptr<Wide>> scales, zeros;
  std::vector<Matrix> values;
};

TEST_P(SensitivityTest, RoundingProductsOfSeveralWidthsAreThoseOfDoublePrecision) {
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 131}, {40, 64}, {2, 1500}, {0, 5}}) {
      const Matrix w = rounded(layout.type, random_matrix(rows, cols, 3, 0.02));
      const Matrix gradient = random_matrix(rows, cols, 4, 1e-3);
      for (const std::int64_t group_size : {16, 4096}) {
        const Rounded r(backend(), w, group_size, {2, 3, 4, 8});
        Wide device_w(backend(), w, layout),
            device_gradient(backend(), gradient, {.extra = layout.extra});
        for (const float kept_above : {kNone, 0.03f, 0.0f}) {
          std::vector<RoundingSums> sums(4, {1.0, 1.0, 1.0});
          backend().rounding_products({.gradient = device_gradient,
                                       .w = device_w,
                                       .group_size = group_size,
                                       .widths = r.widths(kept_above),
                                       .sums = sums});
          for (std::size_t i = 0; i < 4; ++i) {
            RoundingSums want;
            for (std::size_t at = 0; at < w.values.size(); ++at) {
              const bool kept = i == 0 && std::abs(w.values[at]) > static_cast<double>(kept_above);
              const double product =
                  kept ? 0.0 : gradient.values[at] * (w.values[at] - r.values[i].values[at]);
              want.first_order += product;
              want.absolute += std::abs(product);
              want.squares += product * product;
            }
            const std::string what = std::to_string(rows) + " x " + std::to_string(cols) + ", " +
                                     std::to_string(r.bits[i]) + " bits";
            EXPECT_NEAR(sums[i].first_order, want.first_order, 1e-12 * want.absolute) << what;
            EXPECT_NEAR(sums[i].absolute, want.absolute, 1e-12 * want.absolute) << what;
            EXPECT_NEAR(sums[i].squares, want.squares, 1e-12 * want.squares) << what;
          }
        }
      }
    }
  }
}

TEST_P(SensitivityTest, RoundingProductsHaveTheSameBitsWithAnyThreads) {
  const Matrix w = random_matrix(120, 200, 5), gradient = random_matrix(120, 200, 6);
  expect_same_bits_with_any_threads([&](Backend& other) {
    const Rounded r(other, w, 64, {2, 4});
    Wide device_w(other, w), device_gradient(other, gradient);
    std::vector<RoundingSums> sums(2);
    other.rounding_products({.gradient = device_gradient,
                             .w = device_w,
                             .group_size = 64,
                             .widths = r.widths(kNone),
                             .sums = sums});
    Matrix all(2, 3);
    all.values = {sums[0].first_order, sums[0].absolute, sums[0].squares,
                  sums[1].first_order, sums[1].absolute, sums[1].squares};
    return all;
  });
}

TEST_P(SensitivityTest, CountsOfKeysFindTheKthLargest) {
  Matrix m = random_matrix(20, 131, 7);
  m(3, 3) = 0.0;
  m(3, 4) = -0.0;
  m(5, 5) = std::numeric_limits<double>::infinity();
  m(6, 6) = 1e-42;
  for (std::int64_t j = 0; j < 40; ++j) m(7, j) = 0.5;  // ties
  Wide device(backend(), m);
  for (const bool magnitude : {false, true}) {
    std::vector<float> sorted;
    for (const double value : m.values)
      sorted.push_back(static_cast<float>(magnitude ? std::abs(value) : value));
    std::ranges::sort(sorted, std::greater());
    for (const std::size_t k : {1, 2, 100, 1000, 1500, 2620}) {
      std::uint32_t prefix = 0;
      int prefix_bits = 0;
      auto left = static_cast<std::int64_t>(k);
      for (const int bits : {11, 11, 10}) {
        std::vector<std::int64_t> counts(std::size_t{1} << bits, 5);  // added to what is there
        backend().count_keys({.x = device,
                              .magnitude = magnitude,
                              .prefix = prefix,
                              .prefix_bits = prefix_bits,
                              .bits = bits,
                              .counts = counts});
        std::uint32_t value = (1u << bits) - 1;
        while (left > counts[value] - 5) left -= counts[value--] - 5;
        prefix = prefix << bits | value;
        prefix_bits += bits;
      }
      EXPECT_EQ(value_of_key(prefix), sorted[k - 1]) << k << (magnitude ? " by magnitude" : "");
    }
  }
}

TEST_P(SensitivityTest, CountsWhatReachesEachThresholdAndIsNotSensitive) {
  const Matrix w = random_matrix(30, 77, 8);
  Matrix sensitivity = random_matrix(30, 77, 9);
  for (double& value : sensitivity.values) value = value * value;
  std::vector<float> thresholds{0.0f, 0.5f, static_cast<float>(std::abs(w(2, 2))),
                                2.0f, 2.0f, 100.0f};
  std::ranges::sort(thresholds);
  Wide device_w(backend(), w), device_sensitivity(backend(), sensitivity);
  for (const bool weighed : {false, true}) {
    std::vector<std::int64_t> counts(thresholds.size(), 7);
    backend().count_large({.w = device_w,
                           .sensitivity = weighed ? ConstMatrix(device_sensitivity) : ConstMatrix(),
                           .sensitive_above = 1.0f,
                           .thresholds = thresholds,
                           .counts = counts});
    for (std::size_t t = 0; t < thresholds.size(); ++t) {
      std::int64_t want = 7;
      for (std::size_t i = 0; i < w.values.size(); ++i) {
        want += std::abs(w.values[i]) >= static_cast<double>(thresholds[t]) &&
                !(weighed && sensitivity.values[i] > 1.0);
      }
      EXPECT_EQ(counts[t], want) << thresholds[t];
    }
  }
}

TEST_P(SensitivityTest, RemovesStrictlyMoreSensitiveAndAtLeastAsLarge) {
  Matrix w(1, 5), sensitivity(1, 5);
  w.values = {2.0, -2.0, 1.5, -1.0, 0.5};
  sensitivity.values = {1.0, 1.0, 3.0, 3.5, 1.0};
  Wide device_w(backend(), w), device_sensitivity(backend(), sensitivity),
      removed(backend(), Matrix(1, 5), DType::kU8);
  backend().remove_outliers({.w = device_w,
                             .sensitivity = device_sensitivity,
                             .sensitive_above = 3.0f,
                             .large_from = 2.0f,
                             .removed = removed});
  EXPECT_EQ(download(backend(), removed).values, (std::vector<double>{1, 1, 0, 1, 0}));
  EXPECT_EQ(download(backend(), device_w).values, (std::vector<double>{0, 0, 1.5, 0, 0.5}));
  EXPECT_EQ(download(backend(), device_sensitivity).values, (std::vector<double>{0, 0, 3, 0, 1}));
}

INSTANTIATE_TEST_SUITE_P(Backends, SensitivityTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
