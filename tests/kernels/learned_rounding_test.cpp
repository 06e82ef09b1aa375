#include "kernels/learned_rounding.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tests/kernels/backend_test.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using LearnedRoundingTest = BackendTest;
using reference::Matrix;

constexpr Grid kLearnedGrids[] = {Grid::kAsymAutoRound, Grid::kSymFull};
const double kNaN = std::numeric_limits<double>::quiet_NaN();

// A matrix to round on a backend, with its parameters at their start.
class Learned {
 public:
  Learned(Backend& backend, const Matrix& w, std::int64_t group_size, Grid grid, int bits)
      : backend_(backend),
        groups_((w.cols + group_size - 1) / group_size),
        w_(backend, w),
        lo_(backend, constant_matrix(w.rows, groups_, kNaN)),
        hi_(backend, constant_matrix(w.rows, groups_, kNaN)),
        v_(backend, Matrix(w.rows, w.cols)),
        alpha_(backend, constant_matrix(w.rows, groups_, 1.0)),
        beta_(backend, constant_matrix(w.rows, groups_, 1.0)),
        rounding_{.w = w_,
                  .group_size = group_size,
                  .grid = grid,
                  .bits = bits,
                  .lo = lo_,
                  .hi = hi_,
                  .v = v_,
                  .alpha = alpha_,
                  .beta = beta_} {
    backend.find_ranges(
        {.w = w_, .group_size = group_size, .grid = grid, .bits = bits, .lo = lo_, .hi = hi_});
  }
  void set(const Matrix& v, const Matrix& alpha, const Matrix& beta) {
    Wide new_v(backend_, v), new_alpha(backend_, alpha), new_beta(backend_, beta);
    backend_.copy(new_v, v_);
    backend_.copy(new_alpha, alpha_);
    backend_.copy(new_beta, beta_);
    backend_.sync();
  }
  void step(const Matrix& gradient, float rate, float range_rate) {
    Wide device(backend_, gradient);
    backend_.learn_rounding(
        {.rounding = rounding_, .gradient = device, .rate = rate, .range_rate = range_rate});
    backend_.sync();
  }
  Matrix values() {
    Wide values(backend_, constant_matrix(rounding_.w.rows, rounding_.w.cols, kNaN));
    backend_.round_learned(
        {.rounding = rounding_, .values = values, .codes = {}, .scales = {}, .zeros = {}});
    return download(backend_, values);
  }
  struct Codes {
    Matrix codes, scales, zeros, values;  // values by Dequantize
  };
  Codes codes() {
    const std::int64_t rows = rounding_.w.rows, cols = rounding_.w.cols;
    Wide codes(backend_, Matrix(rows, cols), DType::kU8);
    Wide scales(backend_, constant_matrix(rows, groups_, kNaN));
    Wide zeros(backend_, Matrix(rows, groups_), DType::kU8);
    Wide values(backend_, constant_matrix(rows, cols, kNaN));
    backend_.round_learned(
        {.rounding = rounding_, .values = {}, .codes = codes, .scales = scales, .zeros = zeros});
    backend_.dequantize({.codes = codes,
                         .group_size = rounding_.group_size,
                         .scales = scales,
                         .zeros = zeros,
                         .group_of_column = {},
                         .w = values});
    return {download(backend_, codes), download(backend_, scales), download(backend_, zeros),
            download(backend_, values)};
  }
  Matrix v() { return download(backend_, v_); }
  Matrix alpha() { return download(backend_, alpha_); }
  Matrix beta() { return download(backend_, beta_); }
  Matrix lo() { return download(backend_, lo_); }
  Matrix hi() { return download(backend_, hi_); }

 private:
  Backend& backend_;
  std::int64_t groups_;
  Wide w_, lo_, hi_, v_, alpha_, beta_;
  LearnedRounding rounding_;
};

Matrix in_zero_to_one(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Random random(seed);
  Matrix m(rows, cols);
  for (double& value : m.values) {
    value = static_cast<double>(static_cast<float>(0.5 + 0.5 * random.uniform()));
  }
  return m;
}

TEST_P(LearnedRoundingTest, AHandWorkedAsymmetricGroup) {
  // 2 bits, [-1, 2]: s = 1, z = 1. With alpha = 0.5 and beta = 0.75: range [-0.5, 1.5], s = 0.666.., z = rne(0.75) = 1.
  Matrix w(1, 4), v(1, 4), half(1, 1), most(1, 1);
  w.values = {-1.0, 0.25, 0.5, 2.0};
  Learned learned(backend(), w, 4, Grid::kAsymAutoRound, 2);
  EXPECT_EQ(learned.lo().values, std::vector<double>{-1.0});
  EXPECT_EQ(learned.hi().values, std::vector<double>{2.0});
  EXPECT_EQ(learned.codes().codes.values, (std::vector<double>{0, 1, 1, 3}));  // 0.5 to even

  v.values = {0.0, 0.375, 0.125, 0.0};  // 0.625 and 0.625 round up
  half(0, 0) = 1.0;
  most(0, 0) = 1.0;
  learned.set(v, half, most);
  EXPECT_EQ(learned.values().values, (std::vector<double>{-1.0, 1.0, 1.0, 2.0}));

  half(0, 0) = 0.5;
  most(0, 0) = 0.75;
  learned.set(Matrix(1, 4), half, most);
  const auto s = static_cast<double>(round_to_half(2.0f / 3.0f));
  const Learned::Codes got = learned.codes();
  EXPECT_EQ(got.scales.values, std::vector<double>{s});
  EXPECT_EQ(got.zeros.values, std::vector<double>{1});
  EXPECT_EQ(got.codes.values, (std::vector<double>{0, 1, 2, 3}));  // -1.5 and 3 are clamped
}

TEST_P(LearnedRoundingTest, AHandWorkedStep) {
  // The same group at its start, s = 1, z = 1, w / s = (-1, 0.25, 0.5, 2), codes (0, 1, 1, 3), none clamped:
  // D = code - z - w / s = (0, -0.25, -0.5, 0). G = (1, 2, -4, 0): sum G D = -0.5 + 2 = 1.5,
  // dL/dalpha = 1.5 (1 / 3) > 0, dL/dbeta = 1.5 (2 / 3) > 0.
  Matrix w(1, 4), gradient(1, 4);
  w.values = {-1.0, 0.25, 0.5, 2.0};
  gradient.values = {1.0, 2.0, -4.0, 0.0};
  Learned learned(backend(), w, 4, Grid::kAsymAutoRound, 2);
  learned.step(gradient, 0.25f, 0.125f);
  EXPECT_EQ(learned.v().values, (std::vector<double>{-0.25, -0.25, 0.25, 0.0}));
  EXPECT_EQ(learned.alpha().values, std::vector<double>{0.875});
  EXPECT_EQ(learned.beta().values, std::vector<double>{0.875});

  // Back: alpha and beta do not pass 1; without a rate for them they stay.
  for (double& value : gradient.values) value = -value;
  Learned other(backend(), w, 4, Grid::kAsymAutoRound, 2);
  other.step(gradient, 0.25f, 0.125f);
  EXPECT_EQ(other.v().values, (std::vector<double>{0.25, 0.25, -0.25, 0.0}));
  EXPECT_EQ(other.alpha().values, std::vector<double>{1.0});
  learned.step(gradient, 0.25f, 0.0f);
  EXPECT_EQ(learned.alpha().values, std::vector<double>{0.875});
}

TEST_P(LearnedRoundingTest, AHandWorkedSymmetricGroupWithANegativeScale) {
  // 2 bits, [-1, 2]: the larger end is 2, s = -1, codes of w / s = (1, -0.25, -0.5, -2) with z = 2: (3, 2, 2, 0).
  Matrix w(1, 4), gradient(1, 4);
  w.values = {-1.0, 0.25, 0.5, 2.0};
  gradient.values = {0.0, 1.0, 0.0, 0.0};
  Learned learned(backend(), w, 4, Grid::kSymFull, 2);
  const Learned::Codes got = learned.codes();
  EXPECT_EQ(got.scales.values, std::vector<double>{-1.0});
  EXPECT_EQ(got.codes.values, (std::vector<double>{3, 2, 2, 0}));
  // dL/dv = G s = -1. D = 0.25, ds/dbeta = -2 / 2: dL/dbeta = -0.25, which keeps beta at 1; alpha has no slope.
  learned.step(gradient, 0.25f, 0.125f);
  EXPECT_EQ(learned.v().values, (std::vector<double>{0.0, 0.25, 0.0, 0.0}));
  EXPECT_EQ(learned.beta().values, std::vector<double>{1.0});
  gradient.values = {0.0, -1.0, 0.0, 0.0};
  learned.step(gradient, 0.25f, 0.125f);
  EXPECT_EQ(learned.beta().values, std::vector<double>{0.875});
  EXPECT_EQ(learned.alpha().values, std::vector<double>{1.0});
}

TEST_P(LearnedRoundingTest, AClampedWeightMovesTheRangeButNotItsOffset) {
  // alpha = 0.5: range [-0.5, 1], 2 bits, s = 0.5, z = 1; w = -1 has w / s + z = -1, clamped to 0: its value is -s z.
  // D = -1 - alpha lo / s = 0, so only the zero point pulls: dL/dalpha = G lo < 0.
  Matrix w(1, 2), alpha(1, 1), beta(1, 1), gradient(1, 2);
  w.values = {-1.0, 1.0};
  alpha(0, 0) = 0.5;
  beta(0, 0) = 1.0;
  gradient.values = {1.0, 0.0};
  Learned learned(backend(), w, 2, Grid::kAsymAutoRound, 2);
  learned.set(Matrix(1, 2), alpha, beta);
  EXPECT_EQ(learned.values().values, (std::vector<double>{-0.5, 1.0}));
  learned.step(gradient, 0.25f, 0.125f);
  EXPECT_EQ(learned.v().values, (std::vector<double>{0.0, 0.0}));
  EXPECT_EQ(learned.alpha().values, std::vector<double>{0.625});
}

TEST_P(LearnedRoundingTest, StartsAsRoundToNearest) {
  const Matrix w = random_matrix(20, 131, 1, 0.02);
  for (const Grid grid : kLearnedGrids) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const std::int64_t group_size : {1, 16, 50, 131}) {
        const std::int64_t groups = (w.cols + group_size - 1) / group_size;
        Wide device(backend(), w), scales(backend(), constant_matrix(w.rows, groups, kNaN));
        Wide zeros(backend(), Matrix(w.rows, groups), DType::kU8);
        Wide codes(backend(), Matrix(w.rows, w.cols), DType::kU8);
        backend().find_grid({.w = device,
                             .group_size = group_size,
                             .grid = grid,
                             .bits = bits,
                             .clip = {},
                             .scales = scales,
                             .zeros = zeros});
        backend().round_to_grid({.w = device,
                                 .group_size = group_size,
                                 .bits = bits,
                                 .scales = scales,
                                 .zeros = zeros,
                                 .codes = codes});
        const Learned::Codes got = Learned(backend(), w, group_size, grid, bits).codes();
        EXPECT_EQ(got.codes.values, download(backend(), codes).values) << name_of(grid) << bits;
        EXPECT_EQ(got.scales.values, download(backend(), scales).values) << name_of(grid) << bits;
        EXPECT_EQ(got.zeros.values, download(backend(), zeros).values) << name_of(grid) << bits;
      }
    }
  }
}

TEST_P(LearnedRoundingTest, CodesDequantizeToTheValues) {
  const Matrix w = random_matrix(40, 300, 2, 0.02), v = random_matrix(40, 300, 3, 0.3);
  for (const Grid grid : kLearnedGrids) {
    for (const int bits : {2, 3, 4, 8}) {
      Learned learned(backend(), w, 64, grid, bits);
      learned.set(v, in_zero_to_one(40, 5, 4), in_zero_to_one(40, 5, 5));
      EXPECT_EQ(learned.codes().values.values, learned.values().values) << name_of(grid) << bits;
    }
  }
}

// The gradients of the surrogate in which every rounding is replaced by adding what it added, and clamped codes stay.
struct Surrogate {
  Matrix d_v, d_alpha, d_beta;
};
Surrogate surrogate_gradients(const Matrix& w, const Matrix& v, const Matrix& alpha,
                              const Matrix& beta, const Matrix& gradient, std::int64_t group_size,
                              Grid grid, int bits) {
  const double qmax = std::pow(2.0, bits) - 1.0, middle = std::pow(2.0, bits - 1);
  Surrogate result{Matrix(w.rows, w.cols), Matrix(w.rows, alpha.cols), Matrix(w.rows, alpha.cols)};
  for (std::int64_t row = 0; row < w.rows; ++row) {
    for (std::int64_t group = 0; group < alpha.cols; ++group) {
      const std::int64_t begin = group * group_size, end = std::min(w.cols, begin + group_size);
      double lo = 0.0, hi = 0.0;
      for (std::int64_t j = begin; j < end; ++j) {
        lo = std::min(lo, w(row, j));
        hi = std::max(hi, w(row, j));
      }
      const double a0 = alpha(row, group), b0 = beta(row, group);
      const bool below = -a0 * lo > b0 * hi;
      const auto raw_scale = [&](double a, double b) {
        if (grid == Grid::kSymFull) return below ? -a * lo / middle : -b * hi / middle;
        return (b * hi - a * lo) / qmax;
      };
      const auto rounded_scale =
          static_cast<double>(round_to_half(static_cast<float>(raw_scale(a0, b0))));
      const double scale_shift = rounded_scale - raw_scale(a0, b0);
      const bool symmetric = grid == Grid::kSymFull;
      const double zero = symmetric ? middle : std::nearbyint(-a0 * lo / rounded_scale);
      const double zero_shift = symmetric ? 0.0 : zero + a0 * lo / rounded_scale;
      // The group's sum of gradient times value, with the roundings of the point (a0, b0, v).
      const auto sum = [&](double a, double b, std::int64_t moved, double offset) {
        const double s = raw_scale(a, b) + scale_shift;
        const double z = symmetric ? middle : -a * lo / s + zero_shift;
        double total = 0.0;
        for (std::int64_t j = begin; j < end; ++j) {
          const double at = w(row, j) / rounded_scale + v(row, j);
          const double code = std::nearbyint(at) + zero;
          const double shift = std::nearbyint(at) - at;
          const double here = v(row, j) + (j == moved ? offset : 0.0);
          const double relaxed = code < 0.0    ? 0.0
                                 : code > qmax ? qmax
                                               : w(row, j) / s + here + shift + z;
          total += gradient(row, j) * s * (relaxed - z);
        }
        return total;
      };
      constexpr double kStep = 1e-6;
      result.d_alpha(row, group) =
          (sum(a0 + kStep, b0, -1, 0.0) - sum(a0 - kStep, b0, -1, 0.0)) / (2.0 * kStep);
      result.d_beta(row, group) =
          (sum(a0, b0 + kStep, -1, 0.0) - sum(a0, b0 - kStep, -1, 0.0)) / (2.0 * kStep);
      for (std::int64_t j = begin; j < end; ++j) {
        result.d_v(row, j) = (sum(a0, b0, j, kStep) - sum(a0, b0, j, -kStep)) / (2.0 * kStep);
      }
    }
  }
  return result;
}

// after = before - rate sign(gradient), wherever the gradient is not near 0, which most are not.
void expect_signs(const Matrix& before, const Matrix& after, const Matrix& gradient, double rate,
                  const char* what) {
  double largest = 0.0;
  for (const double g : gradient.values) largest = std::max(largest, std::abs(g));
  ASSERT_GT(largest, 0.0);
  std::size_t sure = 0;
  for (std::size_t i = 0; i < gradient.values.size(); ++i) {
    const double g = gradient.values[i];
    if (g != 0.0 && std::abs(g) < 1e-4 * largest) continue;
    const double want = before.values[i] - (g > 0.0 ? rate : g < 0.0 ? -rate : 0.0);
    ASSERT_NEAR(after.values[i], want, 1e-6) << what << ", element " << i;
    ++sure;
  }
  EXPECT_GT(10 * sure, 9 * gradient.values.size()) << what;
}

TEST_P(LearnedRoundingTest, StepsAgainstTheDifferenceQuotientOfTheSurrogate) {
  const Matrix w = random_matrix(20, 150, 6, 0.02), v = random_matrix(20, 150, 7, 0.3);
  const Matrix gradient = random_matrix(20, 150, 8);
  for (const Grid grid : kLearnedGrids) {
    for (const int bits : {2, 4}) {
      for (const std::int64_t group_size : {40, 150}) {
        const std::int64_t groups = (w.cols + group_size - 1) / group_size;
        const Matrix alpha = in_zero_to_one(20, groups, 9), beta = in_zero_to_one(20, groups, 10);
        const Surrogate want =
            surrogate_gradients(w, v, alpha, beta, gradient, group_size, grid, bits);
        Learned learned(backend(), w, group_size, grid, bits);
        learned.set(v, alpha, beta);
        constexpr double kRate = 0x1p-10;
        learned.step(gradient, static_cast<float>(kRate), static_cast<float>(kRate));
        expect_signs(v, learned.v(), want.d_v, kRate, "v");
        expect_signs(alpha, learned.alpha(), want.d_alpha, kRate, "alpha");
        expect_signs(beta, learned.beta(), want.d_beta, kRate, "beta");
      }
    }
  }
}

TEST_P(LearnedRoundingTest, ValuesAndStepsEqualTorchs) {
  std::ifstream file(source_folder() / "tests/golden/gradients.json");
  const nlohmann::json all = nlohmann::json::parse(file).at("kernels");
  for (const Grid grid : kLearnedGrids) {
    const nlohmann::json& golden = all.at(std::string(name_of(grid)));
    const auto matrix = [&](const char* name) {
      const nlohmann::json& m = golden.at(name);
      Matrix result(m.at("rows"), m.at("cols"));
      result.values = m.at("values").get<std::vector<double>>();
      return result;
    };
    Learned learned(backend(), matrix("w"), golden.at("group_size"), grid, golden.at("bits"));
    learned.set(matrix("v"), matrix("alpha"), matrix("beta"));
    expect_near(learned.values(), matrix("y"), 1e-6, "values");
    constexpr double kRate = 0x1p-10;
    learned.step(matrix("dy"), static_cast<float>(kRate), static_cast<float>(kRate));
    expect_signs(matrix("v"), learned.v(), matrix("d_v"), kRate, "v");
    expect_signs(matrix("alpha"), learned.alpha(), matrix("d_alpha"), kRate, "alpha");
    expect_signs(matrix("beta"), learned.beta(), matrix("d_beta"), kRate, "beta");
  }
}

TEST_P(LearnedRoundingTest, AFlooredScaleHasNoSlope) {
  const Matrix w(2, 8);  // zeros: the scale is the grid's floor
  for (const Grid grid : kLearnedGrids) {
    Learned learned(backend(), w, 8, grid, 4);
    learned.step(constant_matrix(2, 8, 1.0), 0.25f, 0.125f);
    EXPECT_EQ(learned.alpha().values, (std::vector<double>{1.0, 1.0})) << name_of(grid);
    EXPECT_EQ(learned.beta().values, (std::vector<double>{1.0, 1.0})) << name_of(grid);
  }
}

TEST_P(LearnedRoundingTest, AGradientThatIsNotANumberMovesNothing) {
  const Matrix w = random_matrix(3, 40, 11);
  Learned learned(backend(), w, 40, Grid::kAsymAutoRound, 3);
  learned.step(constant_matrix(3, 40, kNaN), 0.25f, 0.125f);
  EXPECT_EQ(learned.v().values, Matrix(3, 40).values);
  EXPECT_EQ(learned.alpha().values, constant_matrix(3, 1, 1.0).values);
}

TEST_P(LearnedRoundingTest, WeightsThatHaveNoGridAreErrors) {
  Matrix bad(2, 8);
  bad(1, 3) = kNaN;
  EXPECT_THROW(Learned(backend(), bad, 8, Grid::kSymFull, 4), Error);
  bad(1, 3) = 3e38;
  EXPECT_THROW(Learned(backend(), bad, 8, Grid::kAsymAutoRound, 4), Error);
}

TEST_P(LearnedRoundingTest, SameBitsWithAnyNumberOfThreads) {
  const Matrix w = random_matrix(300, 700, 12), gradient = random_matrix(300, 700, 13);
  expect_same_bits_with_any_threads([&](Backend& b) {
    Learned learned(b, w, 128, Grid::kAsymAutoRound, 2);
    for (int i = 0; i < 3; ++i) learned.step(gradient, 0.125f, 0.0625f);
    return learned.values();
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, LearnedRoundingTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
