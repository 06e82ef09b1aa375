// The factorization and the solver of GPTQ, on matrices.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "stages/quantize/gptq/factor.h"
#include "stages/quantize/gptq/solve.h"
#include "stages/quantize/rtn/rtn.h"
#include "tests/reference/gptq_reference.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using reference::Matrix64;

HostTensor to_host(const std::vector<float>& values, std::int64_t n) {
  HostTensor tensor(DType::kF32, {n, n});
  std::ranges::copy(values, tensor.as<float>().begin());
  return tensor;
}

HostTensor identity(std::int64_t n) {
  std::vector<float> values(static_cast<std::size_t>(n * n));
  for (std::int64_t i = 0; i < n; ++i) values[i * n + i] = 1;
  return to_host(values, n);
}

Matrix64 to_double(std::span<const float> values, std::int64_t rows, std::int64_t cols) {
  return {rows, cols, {values.begin(), values.end()}};
}

// H = 2/n xᵀ x of inputs as language models have them: correlated, a few channels far above the rest. Rounded to float32.
HostTensor random_hessian(std::int64_t n, std::uint64_t seed, std::int64_t dead_column = -1) {
  Random random(seed);
  const std::int64_t tokens = 2 * n;
  Matrix64 x{tokens, n};
  std::vector<double> size(static_cast<std::size_t>(n));
  for (double& s : size) s = std::exp(0.6 * random.normal()) * (random.below(50) == 0 ? 10 : 1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const double common = random.normal();
    for (std::int64_t c = 0; c < n; ++c) {
      x(t, c) = size[c] * (random.normal() + 0.5 * common);
      if (c == dead_column) x(t, c) = 0;
    }
  }
  const Matrix64 gram = reference::product(reference::transposed(x), x);
  HostTensor h(DType::kF32, {n, n});
  for (std::size_t i = 0; i < gram.values.size(); ++i) {
    h.as<float>()[i] = static_cast<float>(2 * gram.values[i] / static_cast<double>(tokens));
  }
  return h;
}

std::vector<float> random_weights(std::int64_t n, std::uint64_t seed) {
  Random random(seed);
  std::vector<float> w(static_cast<std::size_t>(n));
  for (float& v : w) v = static_cast<float>(0.05 * random.normal());
  return w;
}

class GptqTest : public testing::Test {
 protected:
  HessianFactor factor_of(const HostTensor& h, double damping, bool by_importance) {
    return factorize(Tensor::upload(*backend_, h.view(), DType::kF32), damping, by_importance,
                     *backend_, monitor_);
  }
  QuantizedLinear solve(const std::vector<float>& w, std::int64_t rows, std::int64_t cols,
                        const GptqSettings& settings, const HessianFactor& factor) {
    const QuantizedLinear linear =
        solve_gptq({"w", rows, cols}, upload_f32(w, rows, cols, *backend_), settings, factor,
                   {*team_, *team_, *backend_});
    validate(linear);
    return linear;
  }
  QuantizedLinear solve(const std::vector<float>& w, std::int64_t rows, std::int64_t cols,
                        const GptqSettings& settings, const HostTensor& h) {
    const bool by_importance = settings.act_order != ActOrder::kNone;
    return solve(w, rows, cols, settings, factor_of(h, settings.damping, by_importance));
  }
  static std::vector<int> codes(const QuantizedLinear& linear) {
    const auto values = linear.codes.as<std::uint8_t>();
    return {values.begin(), values.end()};
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<Communicator> team_ = make_local_communicator();
  RecordingMonitor monitor_;
};

using GptqFactorTest = GptqTest;

TEST_F(GptqFactorTest, MatchesCholeskyInverseCholesky) {
  for (const std::int64_t n : {1, 2, 65, 200}) {
    const HostTensor h = random_hessian(n, static_cast<std::uint64_t>(n));
    const HessianFactor factor = factor_of(h, 0.01, /*by_importance=*/true);
    ASSERT_EQ(factor.status, FactorStatus::kDone);
    EXPECT_EQ(factor.tries, 1);

    Matrix64 permuted{n, n};
    double mean = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const std::int64_t at = factor.order[i] * n + factor.order[j];
        permuted(i, j) = h.as<float>()[at];
      }
      mean += permuted(i, i) / static_cast<double>(n);
    }
    for (std::int64_t i = 0; i < n; ++i) permuted(i, i) += 0.01 * mean;
    const Matrix64 want = reference::gptq_factor(permuted);
    const std::vector<float> got = download_f32(factor.upper, *backend_);
    // Relative to the row's diagonal: the solver uses U_ij / U_ii. float32 loses about the condition number times 6e-8.
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        ASSERT_NEAR(got[i * n + j], want(i, j), 1e-4 * want(i, i))
            << "n = " << n << ", (" << i << ", " << j << ")";
      }
    }
  }
}

TEST_F(GptqFactorTest, OrdersByImportanceAndTiesByColumn) {
  const HostTensor h = to_host({1, 0, 0, 0,  //
                                0, 3, 0, 0,  //
                                0, 0, 0, 0,  // dead: counts as 1
                                0, 0, 0, 3},
                               4);
  EXPECT_EQ(factor_of(h, 0.01, true).order, (std::vector<std::int64_t>{1, 3, 0, 2}));
  const HessianFactor natural = factor_of(h, 0.01, false);
  EXPECT_TRUE(natural.same_as_columns());
  EXPECT_EQ(natural.dead, (std::vector<std::uint8_t>{0, 0, 1, 0}));
  EXPECT_EQ(natural.diagonal, (std::vector<float>{1, 3, 1, 3}));
}

// ones(3, 3) has rank 1: the second pivot is 1 - 1 = 0.
TEST_F(GptqFactorTest, RaisesTheDampingUntilPositiveDefinite) {
  const HessianFactor factor = factor_of(to_host(std::vector<float>(9, 1.0f), 3), 0.0, true);
  EXPECT_EQ(factor.status, FactorStatus::kDone);
  EXPECT_EQ(factor.damping, 0.01);
  EXPECT_EQ(factor.tries, 2);
  EXPECT_EQ(factor.diagonal_floor, 0);
}

// Eigenvalues 3.05 and -1.05: damping 1 leaves -0.05, and of the floors 1e-6, .., 1e-1 the last makes that positive.
TEST_F(GptqFactorTest, RaisesTheDiagonalWhereDampingIsNotEnough) {
  const HessianFactor factor = factor_of(to_host({1, 2.05f, 2.05f, 1}, 2), 0.01, true);
  EXPECT_EQ(factor.status, FactorStatus::kDone);
  EXPECT_EQ(factor.damping, 1.0);
  EXPECT_EQ(factor.tries, 8 + 6);  // 0.01, 0.02, .., 0.64, 1; then six floors
  EXPECT_NEAR(factor.diagonal_floor, 0.1, 1e-12);
}

TEST_F(GptqFactorTest, GivesUpOnWhatIsFarFromPositiveDefinite) {
  const HessianFactor factor = factor_of(to_host({1, 3, 3, 1}, 2), 0.01, true);
  EXPECT_EQ(factor.status, FactorStatus::kNotPositiveDefinite);
  EXPECT_TRUE(factor.upper.empty());
}

TEST_F(GptqFactorTest, SaysThatAHessianIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(factor_of(to_host({1, bad, bad, 1}, 2), 0.01, true).status, FactorStatus::kNotFinite);
    EXPECT_EQ(factor_of(to_host({bad, 0, 0, 1}, 2), 0.01, true).status, FactorStatus::kNotFinite);
  }
}

using GptqSolveTest = GptqTest;

// w = (0.4, 1.4, 3), 2 bits: s = 1, z = 0. Column 3 stands alone. The inverse of (2 1; 1 2) is (2 -1; -1 2) / 3, so
//   column 1: 0.4 -> 0, and 1.4 grows by 0.4 / 2 to 1.6      (u12 / u11 = -1/2)
//   column 2: 1.6 -> 2, where rounding to nearest has 1
// The error is (0.4, -0.6, 0): tr / 2 = (2 * 0.16 + 2 * 0.36 - 2 * 0.4 * 0.6) / 2 = 0.28; relative to
// (2 * 0.16 + 2 * 1.96 + 9) / 2 = 6.62. Rounding to nearest has the error (0.4, 0.4, 0), 0.48.
TEST_F(GptqSolveTest, LaterColumnsMakeUpForEarlierOnes) {
  const HostTensor h = to_host({2, 1, 0, 1, 2, 0, 0, 0, 1}, 3);
  const QuantizedLinear linear = solve(
      {0.4f, 1.4f, 3}, 1, 3,
      {.scheme = {.bits = 2, .group_size = -1}, .damping = 0, .act_order = ActOrder::kNone}, h);
  EXPECT_EQ(codes(linear), (std::vector<int>{0, 2, 3}));
  EXPECT_NEAR(linear.record.at("error").get<double>(), 0.28, 1e-6);
  EXPECT_NEAR(linear.record.at("relative_error").get<double>(), 0.28 / 6.62, 1e-6);
  EXPECT_EQ(linear.record.at("damping_tries"), 1);
  EXPECT_FALSE(linear.record.contains("fallback"));
}

// Now column 2 counts more and goes first; the inverse of (4 1; 1 2) is (2 -1; -1 4) / 7:
//   column 2: 1.4 -> 1, and 0.4 grows by 0.4 / 2 to 0.6
//   column 1: 0.6 -> 1
// The error is (-0.6, 0.4, 0): (2 * 0.36 + 4 * 0.16 - 2 * 0.6 * 0.4) / 2 = 0.44.
TEST_F(GptqSolveTest, ImportantColumnsGoFirst) {
  const HostTensor h = to_host({2, 1, 0, 1, 4, 0, 0, 0, 1}, 3);
  for (const ActOrder order : {ActOrder::kStatic, ActOrder::kDynamic}) {
    const QuantizedLinear linear =
        solve({0.4f, 1.4f, 3}, 1, 3,
              {.scheme = {.bits = 2, .group_size = -1}, .damping = 0, .act_order = order}, h);
    EXPECT_EQ(codes(linear), (std::vector<int>{1, 1, 3}));
    EXPECT_NEAR(linear.record.at("error").get<double>(), 0.44, 1e-6);
    EXPECT_EQ(linear.group_of_column.count(), 0);
  }
}

// Two groups of two. Importance 4, 3, 2, 1 by column 3, 0, 2, 1, no correlation, so every weight is rounded to nearest: only
// the grids differ. Static: (0, 3) and (6, 0) make scales 1 and 2. Dynamic: groups {3, 0} and {2, 1} are (0, 0) -> range (-1, 1),
// s = 2/3, z = rne(1.5) = 2; and (6, 3): s = 2, z = 0; rne(3 / 2) is a tie and goes to 2.
TEST_F(GptqSolveTest, GroupsAreOfTheCheckpointOrOfTheOrder) {
  const HostTensor h = to_host({3, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 4}, 4);
  const std::vector<float> w{0, 3, 6, 0};
  GptqSettings settings{.scheme = {.bits = 2, .group_size = 2}, .damping = 0};
  const QuantizedLinear fixed = solve(w, 1, 4, settings, h);
  EXPECT_EQ(codes(fixed), (std::vector<int>{0, 3, 3, 0}));
  EXPECT_EQ(fixed.group_of_column.count(), 0);

  settings.act_order = ActOrder::kDynamic;
  const QuantizedLinear moving = solve(w, 1, 4, settings, h);
  EXPECT_EQ(codes(moving), (std::vector<int>{2, 2, 3, 2}));
  EXPECT_EQ(values_of<std::int32_t>(moving.group_of_column),
            (std::vector<std::int32_t>{0, 1, 1, 0}));
}

// A row that ends further off than zeros would is rounded to nearest if that is nearer. (0.6, 0.6, 1, 3) with s = 1: column 0 becomes 1, off
// by -0.4; column 1 is then 1.55. GPTQ takes 2, which makes 11 of column 2 and leaves 8: (0.4² + 0.45² + 8²) / 2 = 32.2. Rounding to nearest
// takes 1, which leaves column 2 as it is: (0.4² + 0.55²) / 2 = 0.23. Zeros: (0.6² + 0.825² + 1 + 3²) / 2 = 5.5. The second row is on the grid.
TEST_F(GptqSolveTest, ARowThatIsWorseThanZerosIsRoundedToNearest) {
  HessianFactor factor = factor_of(identity(4), 0, false);
  const HostTensor upper = to_host({1, 2.375f, 13.75f, 0, 0, 1, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1}, 4);
  factor.upper = Tensor::upload(*backend_, upper.view(), DType::kF32);
  const GptqSettings settings{
      .scheme = {.bits = 2, .group_size = -1}, .damping = 0, .act_order = ActOrder::kNone};
  const QuantizedLinear linear = solve({0.6f, 0.6f, 1, 3, 0, 3, 1, 2}, 2, 4, settings, factor);
  EXPECT_EQ(codes(linear), (std::vector<int>{1, 1, 1, 3, 0, 3, 1, 2}));
  EXPECT_EQ(linear.record.at("rounded_rows"), 1);
  EXPECT_NEAR(linear.record.at("error").get<double>(), (0.4 * 0.4 + 0.55 * 0.55) / 2, 1e-5);
  EXPECT_FALSE(linear.record.contains("fallback"));
}

// A loss beyond that of zeros by the diagonal alone is none to be mended where zeros would be worse still: 0.4 and 1.6 are 800 and 800, and
// zeros 0.4² + 1.6² + 3² by 2 * 0.01².
TEST_F(GptqSolveTest, ARowThatIsBetterThanZerosStays) {
  HessianFactor factor = factor_of(to_host({1, 0, 0, 0, 1, 0, 0, 0, 1}, 3), 0, false);
  const HostTensor upper = to_host({0.01f, -0.005f, 0, 0, 0.01f, 0, 0, 0, 0.01f}, 3);
  factor.upper = Tensor::upload(*backend_, upper.view(), DType::kF32);
  const GptqSettings settings{
      .scheme = {.bits = 2, .group_size = -1}, .damping = 0, .act_order = ActOrder::kNone};
  const QuantizedLinear linear = solve({0.4f, 1.4f, 3}, 1, 3, settings, factor);
  EXPECT_EQ(codes(linear), (std::vector<int>{0, 2, 3}));
  EXPECT_FALSE(linear.record.contains("rounded_rows"));
}

// The same where groups follow the order of the columns, backwards here; those of the second group are on its grid.
TEST_F(GptqSolveTest, RowsAreRoundedInGroupsOfTheOrder) {
  HessianFactor factor = factor_of(identity(8), 0, false);
  factor.order = {7, 6, 5, 4, 3, 2, 1, 0};
  HostTensor upper = identity(8);
  upper.as<float>()[1] = 2.375f;
  upper.as<float>()[2] = 13.75f;
  upper.as<float>()[8 + 2] = 10;
  factor.upper = Tensor::upload(*backend_, upper.view(), DType::kF32);
  const GptqSettings settings{
      .scheme = {.bits = 2, .group_size = 4}, .damping = 0, .act_order = ActOrder::kDynamic};
  const QuantizedLinear linear = solve({3, 2, 1, 0, 3, 1, 0.6f, 0.6f}, 1, 8, settings, factor);
  EXPECT_EQ(codes(linear), (std::vector<int>{3, 2, 1, 0, 3, 1, 1, 1}));
  EXPECT_EQ(values_of<std::int32_t>(linear.group_of_column),
            (std::vector<std::int32_t>{1, 1, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(linear.record.at("rounded_rows"), 1);
}

TEST_F(GptqSolveTest, AHessianThatIsNotFiniteRoundsToNearest) {
  const float bad = std::numeric_limits<float>::infinity();
  const GptqSettings settings{.scheme = {.bits = 2, .group_size = -1}};
  const QuantizedLinear linear =
      solve({0.4f, 1.4f, 3}, 1, 3, settings, to_host({bad, 1, 0, 1, 2, 0, 0, 0, 1}, 3));
  EXPECT_EQ(codes(linear), (std::vector<int>{0, 1, 3}));
  EXPECT_EQ(linear.record.at("fallback"), "rtn");
  EXPECT_EQ(linear.record.at("hessian"), "not finite");
}

struct Form {
  std::int64_t group_size;
  bool symmetric;
  ActOrder order;
};

class GptqReferenceTest : public GptqTest, public testing::WithParamInterface<Form> {};

INSTANTIATE_TEST_SUITE_P(
    Forms, GptqReferenceTest, testing::ValuesIn([] {
      std::vector<Form> forms;
      for (const std::int64_t group_size : {-1, 32, 100, 128}) {
        for (const bool symmetric : {false, true}) {
          for (const ActOrder order : {ActOrder::kStatic, ActOrder::kDynamic, ActOrder::kNone}) {
            forms.push_back({group_size, symmetric, order});
          }
        }
      }
      return forms;
    }()),
    [](const auto& of) {
      const Form& form = of.param;
      return std::string(form.group_size == -1 ? "row" : "g" + std::to_string(form.group_size)) +
             (form.symmetric ? "_symmetric" : "_asymmetric") +
             (form.order == ActOrder::kStatic    ? "_static"
              : form.order == ActOrder::kDynamic ? "_dynamic"
                                                 : "_none");
    });

// Codes are those of the double-precision reference, but where float32 falls on the other side of a tie. That error is then
// spread over the rest of the row, which may differ as it likes; so a row counts up to its first difference.
TEST_P(GptqReferenceTest, MatchesThePaperInDoublePrecision) {
  const Form& form = GetParam();
  constexpr std::int64_t kRows = 24, kCols = 256;
  const HostTensor h = random_hessian(kCols, 11, /*dead_column=*/17);
  const std::vector<float> w = random_weights(kRows * kCols, 12);
  GptqSettings settings{.scheme = {.bits = 3,
                                   .group_size = form.group_size,
                                   .grid = form.symmetric ? Grid::kSymGptq : Grid::kAsymGptq},
                        .act_order = form.order};
  const QuantizedLinear linear = solve(w, kRows, kCols, settings, h);

  reference::Gptq plain{.bits = 3,
                        .group_size = linear.group_size,
                        .symmetric = form.symmetric,
                        .by_importance = form.order != ActOrder::kNone,
                        .static_groups = form.order == ActOrder::kStatic};
  const reference::GptqSolution want =
      reference::gptq(to_double(w, kRows, kCols), to_double(h.as<float>(), kCols, kCols), plain);

  const std::vector<int> got = codes(linear);
  int same = 0, different_rows = 0;
  for (std::int64_t r = 0; r < kRows; ++r) {
    for (std::int64_t i = 0; i < kCols; ++i, ++same) {
      const auto at = static_cast<std::size_t>(r * kCols + want.order[i]);
      if (got[at] == want.codes[at]) continue;
      const double from_tie = std::fabs(want.in_steps[at] - std::floor(want.in_steps[at]) - 0.5);
      EXPECT_LT(from_tie, 2e-3) << "row " << r << ", step "
                                << i;  // float16 scales differ by 5e-4 at most
      ++different_rows;
      break;
    }
  }
  EXPECT_LE(different_rows, kRows / 8);

  const double loss = std::accumulate(want.row_loss.begin(), want.row_loss.end(), 0.0);
  // A row that took another turn has about, not exactly, the reference's loss.
  EXPECT_NEAR(linear.record.at("error").get<double>() / loss, 1.0,
              different_rows == 0 ? 1e-4 : 5e-3);
  if (different_rows == 0) {
    EXPECT_EQ(got, want.codes);
  }
  if (form.order == ActOrder::kDynamic && linear.groups() > 1) {
    const auto groups = values_of<std::int32_t>(linear.group_of_column);
    EXPECT_TRUE(std::ranges::equal(groups, want.group_of_column));
  } else {
    EXPECT_EQ(linear.group_of_column.count(), 0);
  }
}

// tr((W - Q) (H + damping * mean(diagonal)) (W - Q)ᵀ) / 2 in double.
double loss_of(const QuantizedLinear& linear, const std::vector<float>& w, const HostTensor& h,
               double damping, Backend& backend) {
  Matrix64 damped = to_double(h.as<float>(), linear.cols, linear.cols);
  double trace = 0;
  for (std::int64_t k = 0; k < linear.cols; ++k) trace += damped(k, k);
  for (std::int64_t k = 0; k < linear.cols; ++k) {
    damped(k, k) += damping * trace / static_cast<double>(linear.cols);
  }
  const std::vector<float> q = download_f32(dequantize(linear, backend), backend);
  Matrix64 difference = to_double(w, linear.rows, linear.cols);
  for (std::size_t i = 0; i < q.size(); ++i) difference.values[i] -= q[i];
  const Matrix64 times_h = reference::product(difference, damped);
  double sum = 0;
  for (std::size_t i = 0; i < q.size(); ++i) sum += difference.values[i] * times_h.values[i] / 2;
  return sum;
}

TEST_F(GptqSolveTest, LossIsWhatTheRecordSaysAndBelowRoundingToNearest) {
  constexpr std::int64_t kRows = 32, kCols = 200;
  const HostTensor h = random_hessian(kCols, 21);
  const std::vector<float> w = random_weights(kRows * kCols, 22);
  const Tensor weights = upload_f32(w, kRows, kCols, *backend_);
  for (const Grid grid : {Grid::kAsymGptq, Grid::kSymGptq, Grid::kSymFull}) {
    for (const int bits : {2, 3, 4, 8}) {
      QuantizedLinear nearest =
          unsolved_linear({"w", kRows, kCols}, {.bits = bits, .group_size = 64, .grid = grid});
      round_to_nearest({*team_, *team_, *backend_}, nearest, weights, {});
      const double rtn_loss = loss_of(nearest, w, h, 0, *backend_);
      for (const ActOrder order : {ActOrder::kStatic, ActOrder::kDynamic, ActOrder::kNone}) {
        const QuantizedLinear linear = solve(
            w, kRows, kCols,
            {.scheme = {.bits = bits, .group_size = 64, .grid = grid}, .act_order = order}, h);
        EXPECT_LT(loss_of(linear, w, h, 0, *backend_), rtn_loss)
            << bits << " bits, grid " << name_of(grid);
        const double loss = loss_of(linear, w, h, 0.01, *backend_);
        EXPECT_NEAR(linear.record.at("error").get<double>() / loss, 1.0, 1e-4) << bits << " bits";
      }
    }
  }
}

TEST_F(GptqSolveTest, DeadColumnsBecomeZero) {
  constexpr std::int64_t kRows = 8, kCols = 64;
  const HostTensor h = random_hessian(kCols, 31, /*dead_column=*/5);
  const std::vector<float> w = random_weights(kRows * kCols, 32);
  for (const ActOrder order : {ActOrder::kStatic, ActOrder::kDynamic, ActOrder::kNone}) {
    for (const std::int64_t group_size : {-1, 16}) {
      const QuantizedLinear linear =
          solve(w, kRows, kCols, {.scheme = {.group_size = group_size}, .act_order = order}, h);
      EXPECT_EQ(linear.record.at("dead_columns"), 1);
      const std::vector<float> q = download_f32(dequantize(linear, *backend_), *backend_);
      for (std::int64_t r = 0; r < kRows; ++r) {
        EXPECT_EQ(q[r * kCols + 5], 0.0f) << "row " << r;
      }
    }
  }
}

TEST_F(GptqSolveTest, RoundsToNearestWithoutAFactor) {
  const HostTensor h = to_host({1, 3, 3, 1}, 2);
  const std::vector<float> w{0.4f, 3, -1.5f, 1.5f};
  const QuantizedLinear linear = solve(w, 2, 2, {.scheme = {.bits = 2, .group_size = -1}}, h);
  EXPECT_EQ(linear.record.at("fallback"), "rtn");
  EXPECT_EQ(linear.record.at("damping"), 1.0);
  EXPECT_EQ(linear.record.at("damping_tries"), 14);
  QuantizedLinear nearest =
      unsolved_linear({"w", 2, 2}, {.bits = 2, .group_size = -1, .grid = Grid::kAsymGptq});
  round_to_nearest({*team_, *team_, *backend_}, nearest, upload_f32(w, 2, 2, *backend_), {});
  EXPECT_EQ(codes(linear), codes(nearest));
}

TEST_F(GptqSolveTest, RowsDoNotDependOnTheirTile) {
  constexpr std::int64_t kRows = 300, kCols = 160;
  const HostTensor h = random_hessian(kCols, 41);
  const std::vector<float> w = random_weights(kRows * kCols, 42);
  const GptqSettings settings{.scheme = {.bits = 3, .group_size = 32}};
  const std::vector<int> all = codes(solve(w, kRows, kCols, settings, h));
  const std::vector<int> last =
      codes(solve({w.begin() + 256 * kCols, w.end()}, kRows - 256, kCols, settings, h));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), all.begin() + 256 * kCols));
}

}  // namespace
}  // namespace roundhouse
