#include "kernels/activation_aware.h"

#include <utility>

#include "tests/kernels/backend_test.h"
#include "tests/reference/awq_reference.h"

namespace roundhouse {
namespace {

using ActivationAwareTest = BackendTest;
using reference::Matrix;

const double kNaN = std::numeric_limits<double>::quiet_NaN();
const std::vector<std::pair<std::int64_t, std::int64_t>> kShapes = {
    {1, 1}, {3, 40}, {300, 131}, {520, 70}, {0, 5}};

Matrix row_of(const std::vector<float>& values) {
  Matrix m(1, static_cast<std::int64_t>(values.size()));
  std::copy(values.begin(), values.end(), m.values.begin());
  return m;
}

// Positive, some far from 1.
std::vector<float> random_scales(std::int64_t n, std::uint64_t seed) {
  std::vector<float> s;
  for (const double value : random_matrix(1, n, seed).values) {
    s.push_back(static_cast<float>(std::exp(value)));
  }
  return s;
}

TEST_P(ActivationAwareTest, ColumnMagnitudesAreAddedToWhatIsThere) {
  for (const auto& [rows, cols] : kShapes) {
    const Matrix x = random_matrix(rows, cols, 1);
    Wide device(backend(), x);
    Wide sums(backend(), constant_matrix(1, cols, 2.0));
    backend().column_magnitudes({.x = device, .sums = sums});
    Matrix want = constant_matrix(1, cols, 2.0);
    for (std::int64_t t = 0; t < rows; ++t) {
      for (std::int64_t k = 0; k < cols; ++k) want(0, k) += std::abs(x(t, k));
    }
    expect_near(download(backend(), sums.view()), want, 1e-6);  // float32 sums in slabs
  }
}

TEST_P(ActivationAwareTest, RowsAreComparedByProductsAndBySquaredDifferences) {
  for (const auto& [rows, cols] : kShapes) {
    const Matrix a = random_matrix(rows, cols, 1), b = random_matrix(rows, cols, 2);
    Wide left(backend(), a), right(backend(), b);
    for (const bool product : {false, true}) {
      Wide sums(backend(), constant_matrix(rows, 1, kNaN));
      backend().compare_rows({.a = left, .b = right, .product = product, .sums = sums});
      Matrix want(rows, 1);
      double size = 0;
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t j = 0; j < cols; ++j) {
          const double d = a(i, j) - b(i, j);
          want(i, 0) += product ? a(i, j) * b(i, j) : d * d;
          size = std::max(size, want(i, 0));
        }
      }
      expect_near(download(backend(), sums.view()), want, 1e-5, product ? "product" : "distance");
    }
  }
}

TEST_P(ActivationAwareTest, ADifferenceOfLargeNumbersIsNotLost) {
  // 1000 columns of 4096 + 2^-11 against 4096: squares of the numbers themselves would drown it.
  Wide a(backend(), constant_matrix(1, 1000, 4096.0 + 0x1p-11));
  Wide b(backend(), constant_matrix(1, 1000, 4096.0));
  Wide sums(backend(), Matrix(1, 1));
  backend().compare_rows({.a = a, .b = b, .sums = sums});
  EXPECT_EQ(download(backend(), sums.view())(0, 0), 1000 * 0x1p-22);
}

TEST_P(ActivationAwareTest, ScaledRoundingEqualsTheScalarRules) {
  for (const auto& [rows, cols] : kShapes) {
    Matrix w = random_matrix(rows, cols, 3, 0.02);
    for (std::int64_t j = 0; j < cols && rows > 1; ++j) w(1, j) = 0.0;  // a row of zeros
    const std::vector<float> s = random_scales(cols, 4);
    Wide weights(backend(), w), scales(backend(), row_of(s));
    for (const std::int64_t group_size : {16, 50, 1000}) {
      for (const Grid grid : {Grid::kAsymAwq, Grid::kAsymGptq, Grid::kSymFull}) {
        for (const int bits : {3, 4}) {
          Matrix want = reference::scaled_rounding(
              w, s, {.grid = grid, .bits = bits, .group_size = group_size});
          for (const bool error : {false, true}) {
            Wide out(backend(), constant_matrix(rows, cols, kNaN));
            backend().scaled_rounding({.w = weights,
                                       .column_scales = scales,
                                       .group_size = group_size,
                                       .grid = grid,
                                       .bits = bits,
                                       .error = error,
                                       .out = out});
            if (error) {
              for (std::size_t i = 0; i < want.values.size(); ++i) {
                want.values[i] = static_cast<double>(static_cast<float>(want.values[i]) -
                                                     static_cast<float>(w.values[i]));
              }
            }
            EXPECT_EQ(download(backend(), out.view()).values, want.values)
                << name_of(grid) << " " << bits << " bits, groups of " << group_size;
          }
        }
      }
    }
  }
}

TEST_P(ActivationAwareTest, AGroupWithoutAGridRoundsToNaN) {
  Matrix w(1, 6);
  w.values = {1, kNaN, 1e30, 1, -1, 2};
  Wide weights(backend(), w), scales(backend(), constant_matrix(1, 6, 1.0)), out(backend(), w);
  backend().scaled_rounding({.w = weights,
                             .column_scales = scales,
                             .group_size = 2,
                             .grid = Grid::kAsymAwq,
                             .bits = 4,
                             .out = out});
  const Matrix got = download(backend(), out.view());
  for (std::int64_t j = 0; j < 4; ++j) EXPECT_TRUE(std::isnan(got(0, j))) << j;
  EXPECT_NEAR(got(0, 4), -1.0, 0.1);  // half a step
  EXPECT_NEAR(got(0, 5), 2.0, 0.1);
}

TEST_P(ActivationAwareTest, FoldScalesMultipliesColumnsThenDividesRows) {
  for (const auto& [rows, cols] : kShapes) {
    const Matrix w = random_matrix(rows, cols, 5);
    const std::vector<float> factors = random_scales(cols, 6), divisors = random_scales(rows, 7);
    for (const bool columns : {false, true}) {
      for (const bool by_rows : {false, true}) {
        Wide device(backend(), w), f(backend(), row_of(factors)), d(backend(), row_of(divisors));
        backend().fold_scales({.w = device,
                               .column_factors = columns ? ConstMatrix(f) : ConstMatrix(),
                               .row_divisors = by_rows ? ConstMatrix(d) : ConstMatrix()});
        Matrix want = w;
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t j = 0; j < cols; ++j) {
            auto value = static_cast<float>(w(i, j));
            if (columns) value *= factors[j];
            if (by_rows) value /= divisors[i];
            want(i, j) = static_cast<double>(value);
          }
        }
        EXPECT_EQ(download(backend(), device.view()).values, want.values);
      }
    }
  }
}

TEST_P(ActivationAwareTest, GroupGramsAreTheDiagonalBlocks) {
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {700, 131}, {30, 600}, {0, 5}}) {
    const Matrix x = random_matrix(rows, cols, 8);
    const Matrix full = reference::product(reference::transpose(x), x);
    for (const std::int64_t group_size : {1, 50, 600}) {
      Wide device(backend(), x);
      Wide grams(backend(), constant_matrix(cols, group_size, 1.0));
      backend().group_grams({.x = device, .group_size = group_size, .grams = grams});
      Matrix want = constant_matrix(cols, group_size, 1.0);
      for (std::int64_t i = 0; i < cols; ++i) {
        const std::int64_t first = i / group_size * group_size;
        for (std::int64_t j = first; j < std::min(cols, first + group_size); ++j) {
          want(i, j - first) += full(i, j);
        }
      }
      expect_near(download(backend(), grams.view()), want, 1e-5);  // float32 sums of 700 terms
    }
  }
}

struct Clipped {
  Matrix w, choices, errors;
};

Clipped clip(Backend& backend, const Matrix& w, const Matrix& x, const std::vector<float>& s,
             const reference::AwqGrid& grid, int candidates) {
  const std::int64_t groups = (w.cols + grid.group_size - 1) / grid.group_size;
  Wide weights(backend, w), inputs(backend, x), scales(backend, row_of(s));
  Wide grams(backend, Matrix(w.cols, grid.group_size));
  backend.group_grams({.x = inputs, .group_size = grid.group_size, .grams = grams});
  Wide choices(backend, Matrix(w.rows, groups), DType::kU8);
  Wide errors(backend, constant_matrix(w.rows, 2 * groups, kNaN));
  backend.clip_groups({.w = weights,
                       .column_scales = scales,
                       .grams = grams,
                       .group_size = grid.group_size,
                       .grid = grid.grid,
                       .bits = grid.bits,
                       .candidates = candidates,
                       .divisions = 20,
                       .choices = choices,
                       .errors = errors});
  return {download(backend, weights.view()), download(backend, choices.view()),
          download(backend, errors.view())};
}

TEST_P(ActivationAwareTest, ClippingEqualsTheLiteralSearchOverTokens) {
  constexpr int kCandidates = 10;
  for (const std::int64_t cols : {128, 200}) {
    Matrix w = random_matrix(37, cols, 9, 0.05);
    for (std::int64_t k = 0; k < cols; ++k) w(1, k) = 0.0;
    const Matrix x = random_matrix(90, cols, 10);
    const std::vector<float> s = random_scales(cols, 11);
    Matrix folded = x;  // the inputs of w
    for (std::int64_t t = 0; t < x.rows; ++t) {
      for (std::int64_t k = 0; k < cols; ++k) {
        folded(t, k) /= static_cast<double>(s[k]);
      }
    }
    for (const std::int64_t group_size : {32, 64, 200}) {
      for (const int bits : {2, 4}) {
        const reference::AwqGrid grid{.bits = bits, .group_size = group_size};
        const Clipped got = clip(backend(), w, x, s, grid, kCandidates);
        const reference::Clip want = reference::clip(w, folded, grid, kCandidates);
        std::size_t at = 0;
        int clipped = 0;
        for (std::int64_t i = 0; i < w.rows; ++i) {
          for (std::int64_t first = 0, g = 0; first < cols; first += group_size, ++g, ++at) {
            const std::vector<double>& errors = want.errors[at];
            const double least = *std::min_element(errors.begin(), errors.end());
            const auto choice = static_cast<int>(got.choices(i, g));
            clipped += choice > 0;
            // Two candidates may be as near as float32's rounding of the products.
            EXPECT_LE(errors[choice], least * (1 + 1e-4));
            EXPECT_NEAR(got.errors(i, 2 * g), errors[0], 1e-4 * errors[0]);
            EXPECT_NEAR(got.errors(i, 2 * g + 1), least, 1e-4 * least);
            if (choice != want.best[at]) continue;
            for (std::int64_t k = first; k < std::min(cols, first + group_size); ++k) {
              ASSERT_EQ(got.w(i, k), want.clipped(i, k)) << i << ", " << k;
            }
          }
        }
        EXPECT_GT(clipped, 0);
        EXPECT_EQ(got.choices(1, 0), 0) << "a group of zeros is left alone";
      }
    }
  }
}

TEST_P(ActivationAwareTest, OneCandidateLeavesTheWeightsAlone) {
  const Matrix w = random_matrix(5, 40, 12);
  const Clipped got = clip(backend(), w, random_matrix(9, 40, 13), std::vector<float>(40, 1.0f),
                           {.group_size = 20}, 1);
  EXPECT_EQ(got.w.values, w.values);
  EXPECT_EQ(got.choices.values, std::vector<double>(10, 0.0));
}

TEST_P(ActivationAwareTest, ResultsHaveTheSameBitsForAnyNumberOfThreads) {
  const Matrix w = random_matrix(70, 300, 14, 0.05), x = random_matrix(900, 300, 15);
  const std::vector<float> s = random_scales(300, 16);
  expect_same_bits_with_any_threads([&](Backend& b) {
    const Clipped c = clip(b, w, x, s, {.bits = 3, .group_size = 64}, 10);
    Matrix all(c.w.rows, c.w.cols + c.choices.cols + c.errors.cols);
    all.values = c.w.values;
    all.values.insert(all.values.end(), c.choices.values.begin(), c.choices.values.end());
    all.values.insert(all.values.end(), c.errors.values.begin(), c.errors.values.end());
    return all;
  });
  expect_same_bits_with_any_threads([&](Backend& b) {
    Wide device(b, x), sums(b, Matrix(1, 300));
    b.column_magnitudes({.x = device, .sums = sums});
    return download(b, sums.view());
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, ActivationAwareTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
