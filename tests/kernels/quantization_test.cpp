#include "kernels/quantization.h"

#include <array>

#include "base/error.h"
#include "tests/kernels/backend_test.h"

namespace roundhouse {
namespace {

using QuantizationTest = BackendTest;
using reference::Matrix;

constexpr std::array kGrids{Grid::kAsymGptq, Grid::kAsymAwq, Grid::kAsymAutoRound, Grid::kSymGptq,
                            Grid::kSymFull};
const double kNaN = std::numeric_limits<double>::quiet_NaN();

std::int64_t groups_of(std::int64_t cols, std::int64_t group_size) {
  return (cols + group_size - 1) / group_size;
}

// Grids, codes and values of one matrix, all computed on a backend.
struct Rounded {
  Matrix scales, zeros, codes, values;
};

Rounded round(Backend& backend, const Matrix& w, std::int64_t group_size, Grid grid, int bits,
              ClipSearch clip = {}, std::int64_t extra = 3) {
  const std::int64_t groups = groups_of(w.cols, group_size);
  Wide device(backend, w, {.extra = extra});
  Wide scales(backend, constant_matrix(w.rows, groups, kNaN));
  Wide zeros(backend, Matrix(w.rows, groups), DType::kU8);
  Wide codes(backend, Matrix(w.rows, w.cols), {DType::kU8, extra});
  Wide values(backend, constant_matrix(w.rows, w.cols, kNaN), {.extra = extra});
  backend.find_grid({.w = device,
                     .group_size = group_size,
                     .grid = grid,
                     .bits = bits,
                     .clip = clip,
                     .scales = scales,
                     .zeros = zeros});
  backend.round_to_grid({.w = device,
                         .group_size = group_size,
                         .bits = bits,
                         .scales = scales,
                         .zeros = zeros,
                         .codes = codes});
  backend.dequantize({.codes = codes,
                      .group_size = group_size,
                      .scales = scales,
                      .zeros = zeros,
                      .group_of_column = {},
                      .w = values});
  return {download(backend, scales), download(backend, zeros), download(backend, codes),
          download(backend, values)};
}

TEST_P(QuantizationTest, AHandWorkedRow) {
  // 2 bits, groups of 3: [-1, 0.4, 2] has s = 1, z = 1; the short group [0, 0] has lo, hi = -1, 1:
  // s = 2/3, z = rne(1.5).
  Matrix w(1, 5);
  w.values = {-1.0, static_cast<double>(0.4f), 2.0, 0.0, 0.0};
  const Rounded r = round(backend(), w, 3, Grid::kAsymGptq, 2);
  EXPECT_EQ(r.scales.values,
            (std::vector<double>{1.0, static_cast<double>(round_to_half(2.0f / 3.0f))}));
  EXPECT_EQ(r.zeros.values, (std::vector<double>{1, 2}));
  EXPECT_EQ(r.codes.values, (std::vector<double>{0, 1, 3, 2, 2}));
  EXPECT_EQ(r.values.values, (std::vector<double>{-1.0, 0.0, 2.0, 0.0, 0.0}));
}

TEST_P(QuantizationTest, GridsAndCodesEqualTheScalarRulesForEveryGridWidthAndGroup) {
  for (const auto& [rows, cols] :
       {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 40}, {10, 131}, {0, 5}, {2, 1500}}) {
    Matrix w = random_matrix(rows, cols, 1, 0.02);
    for (std::int64_t j = 0; j < cols && rows > 1; ++j) w(1, j) = 0.0;  // a row of zeros
    for (const std::int64_t group_size : {1, 16, 50, 1200}) {
      if (rows * cols / group_size > 1400) continue;  // enough of so small ones
      for (const Grid grid : kGrids) {
        for (const int bits : {2, 3, 4, 8}) {
          const Rounded r = round(backend(), w, group_size, grid, bits, {}, cols % 8 == 0 ? 8 : 3);
          for (std::int64_t i = 0; i < rows; ++i) {
            for (std::int64_t g = 0; g * group_size < cols; ++g) {
              const std::int64_t end = std::min(cols, (g + 1) * group_size);
              const auto [lo, hi] = std::minmax_element(
                  w.values.begin() + i * cols + g * group_size, w.values.begin() + i * cols + end);
              const GridPoint p =
                  make_grid_point(grid, bits, static_cast<float>(*lo), static_cast<float>(*hi));
              ASSERT_EQ(r.scales(i, g), static_cast<double>(p.scale)) << name_of(grid) << bits;
              ASSERT_EQ(r.zeros(i, g), p.zero) << name_of(grid) << bits;
              for (std::int64_t j = g * group_size; j < end; ++j) {
                const int code =
                    code_of(static_cast<float>(w(i, j)), p.scale, p.zero, (1 << bits) - 1);
                ASSERT_EQ(r.codes(i, j), code)
                    << name_of(grid) << " " << bits << " bits, " << i << ", " << j;
                ASSERT_EQ(r.values(i, j), static_cast<double>(value_of(code, p.scale, p.zero)));
              }
            }
          }
        }
      }
    }
  }
}

double error_of(const Matrix& w, std::int64_t row, std::int64_t begin, std::int64_t end,
                GridPoint p, int bits, double norm) {
  double sum = 0.0;
  for (std::int64_t j = begin; j < end; ++j) {
    const int code = code_of(static_cast<float>(w(row, j)), p.scale, p.zero, (1 << bits) - 1);
    sum +=
        std::pow(std::abs(static_cast<double>(value_of(code, p.scale, p.zero)) - w(row, j)), norm);
  }
  return sum;
}

TEST_P(QuantizationTest, ClipSearchFindsTheLeastErrorOfItsCandidates) {
  const Matrix w = random_matrix(4, 1100, 2);
  for (const std::int64_t group_size : {64, 1100}) {
    for (const Grid grid : kGrids) {
      for (const int bits : {2, 4}) {
        constexpr int kSteps = 80;
        const double norm = static_cast<double>(2.4f);
        const Rounded r =
            round(backend(), w, group_size, grid, bits, {.steps = kSteps, .norm = 2.4f});
        for (std::int64_t i = 0; i < w.rows; ++i) {
          for (std::int64_t g = 0; g * group_size < w.cols; ++g) {
            const std::int64_t begin = g * group_size;
            const std::int64_t end = std::min(w.cols, begin + group_size);
            const auto [lo, hi] = std::minmax_element(w.values.begin() + i * w.cols + begin,
                                                      w.values.begin() + i * w.cols + end);
            double least = std::numeric_limits<double>::infinity();
            for (int step = 0; step < kSteps; ++step) {
              const float p = static_cast<float>(1.0 - 0.01 * step);
              const GridPoint point = make_grid_point(grid, bits, p * static_cast<float>(*lo),
                                                      p * static_cast<float>(*hi));
              least = std::min(least, error_of(w, i, begin, end, point, bits, norm));
            }
            const GridPoint found{static_cast<float>(r.scales(i, g)),
                                  static_cast<int>(r.zeros(i, g))};
            // Two candidates nearer to each other than the power function errs may change places.
            ASSERT_LE(error_of(w, i, begin, end, found, bits, norm), least * (1 + 2e-5))
                << name_of(grid) << " " << bits << " bits, row " << i << ", group " << g;
          }
        }
      }
    }
  }
}

TEST_P(QuantizationTest, ClipSearchKeepsTheFirstOfEqualCandidates) {
  // All candidates leave a group of zeros without an error: the plain range is the first.
  const Matrix w(2, 32);
  const Rounded plain = round(backend(), w, 16, Grid::kAsymGptq, 4);
  const Rounded searched = round(backend(), w, 16, Grid::kAsymGptq, 4, {.steps = 80, .norm = 2.4f});
  EXPECT_EQ(plain.scales.values, searched.scales.values);
  EXPECT_EQ(plain.zeros.values, searched.zeros.values);
}

TEST_P(QuantizationTest, FindGridNamesTheRowThatHoldsNaNOrOverflows) {
  for (const double bad : {kNaN, std::numeric_limits<double>::infinity(), 1e8}) {
    for (const std::int64_t col : {0, 20, 39}) {
      Matrix w = random_matrix(5, 40, 3);
      w(3, col) = bad;
      try {
        (void)round(backend(), w, 40, Grid::kAsymGptq, 4);
        FAIL() << "no error for " << bad;
      } catch (const Error& e) {
        EXPECT_NE(std::string(e.what()).find("row 3"), std::string::npos) << e.what();
      }
    }
  }
}

TEST_P(QuantizationTest, DequantizeKnowsGatheredGroupsAndShorterFloats) {
  Matrix codes(2, 4), scales(2, 2), zeros(2, 2);
  codes.values = {0, 1, 2, 3, 15, 14, 13, 12};
  scales.values = {0.5, 2.0, -1.0, 0.25};
  zeros.values = {1, 2, 8, 0};
  Wide device_codes(backend(), codes, DType::kU8);
  Wide device_scales(backend(), scales);
  Wide device_zeros(backend(), zeros, DType::kU8);
  const std::int32_t groups[] = {1, 0, 1, 0};
  const Tensor group_of_column =
      Tensor::upload(backend(), {DType::kI32, {4}, std::as_bytes(std::span(groups))}, DType::kI32);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    Tensor w(backend(), type, 2, 4);
    backend().dequantize({.codes = device_codes,
                          .group_size = 2,
                          .scales = device_scales,
                          .zeros = device_zeros,
                          .group_of_column = group_of_column.view(),
                          .w = w.view()});
    EXPECT_EQ(download(backend(), w.view()).values,
              (std::vector<double>{-4.0, 0.0, 0.0, 1.0, 3.75, -6.0, 3.25, -4.0}));
  }
  const std::int32_t wrong[] = {1, 0, 2, 0};
  const Tensor bad =
      Tensor::upload(backend(), {DType::kI32, {4}, std::as_bytes(std::span(wrong))}, DType::kI32);
  Tensor w(backend(), DType::kF32, 2, 4);
  EXPECT_THROW(backend().dequantize({.codes = device_codes,
                                     .group_size = 2,
                                     .scales = device_scales,
                                     .zeros = device_zeros,
                                     .group_of_column = bad.view(),
                                     .w = w.view()}),
               Error);
}

struct PanelResult {
  Matrix codes, errors, loss;
};

struct PanelInput {
  Matrix w, u, scales, zeros;
};

PanelInput panel_input(std::int64_t rows, std::int64_t width, int bits) {
  PanelInput in;
  in.w = random_matrix(rows, width, 4, 0.05);
  // A real U: the upper factor of the inverse of a Hessian, H⁻¹ = Uᵀ U.
  const Matrix inverse =
      reference::triangular_inverse(reference::cholesky(positive_definite(width, 5)));
  in.u = reference::transpose(
      reference::cholesky(reference::product(reference::transpose(inverse), inverse)));
  for (double& value : in.u.values) value = static_cast<double>(static_cast<float>(value));
  in.scales = Matrix(rows, width);
  in.zeros = Matrix(rows, width);
  Random random(6);
  for (std::size_t i = 0; i < in.scales.values.size(); ++i) {
    in.scales.values[i] = static_cast<double>(
        round_to_half(static_cast<float>((0.2 + 0.2 * random.uniform()) / (1 << bits))));
    in.zeros.values[i] = static_cast<double>(random.below(1u << bits));
  }
  return in;
}

PanelResult run_panel(Backend& backend, const PanelInput& in, int bits, double loss_before) {
  Wide w(backend, in.w);
  Wide u(backend, in.u);
  Wide scales(backend, in.scales);
  Wide zeros(backend, in.zeros, DType::kU8);
  Wide codes(backend, Matrix(in.w.rows, in.w.cols), DType::kU8);
  Wide errors(backend, constant_matrix(in.w.rows, in.w.cols, kNaN));
  Wide loss(backend, constant_matrix(in.w.rows, 1, loss_before));
  backend.gptq_panel({.w = w,
                      .u = u,
                      .bits = bits,
                      .scales = scales,
                      .zeros = zeros,
                      .codes = codes,
                      .errors = errors,
                      .row_loss = loss});
  return {download(backend, codes), download(backend, errors), download(backend, loss)};
}

TEST_P(QuantizationTest, GptqPanelOfAHandWorkedRow) {
  // Scale 1, zero 0, 4 bits. w = (1.25, 2): code 1, e = 0.25 / 0.5 = 0.5; w_1 becomes 2 - 0.5 * 2 =
  // 1: code 1, e = 0.
  PanelInput in{Matrix(1, 2), Matrix(2, 2), constant_matrix(1, 2, 1.0), Matrix(1, 2)};
  in.w.values = {1.25, 2.0};
  in.u.values = {0.5, 2.0, kNaN, 4.0};  // below the diagonal nothing is read
  const PanelResult r = run_panel(backend(), in, 4, 3.0);
  EXPECT_EQ(r.codes.values, (std::vector<double>{1, 1}));
  EXPECT_EQ(r.errors.values, (std::vector<double>{0.5, 0.0}));
  EXPECT_EQ(r.loss.values, (std::vector<double>{3.125}));
}

TEST_P(QuantizationTest, GptqPanelEqualsTheReferenceUpToItsFirstTie) {
  for (const auto& [rows, width] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                    {1, 8},
                                    {3, 9},
                                    {33, 32},
                                    {70, 128},
                                    {31, 131}}) {
    for (const int bits : {2, 4}) {
      const PanelInput in = panel_input(rows, width, bits);
      const PanelResult got = run_panel(backend(), in, bits, 0.0);
      const reference::Panel want = reference::gptq_panel(in.w, in.u, bits, in.scales, in.zeros);
      int rows_apart = 0;
      for (std::int64_t i = 0; i < rows; ++i) {
        // A weight within rounding of the middle between two codes may go either way, and its row
        // goes its own way from there: compare up to that column.
        bool apart = false;
        for (std::int64_t j = 0; j < width && !apart; ++j) {
          apart = got.codes(i, j) != want.codes[i * width + j];
          if (!apart) {
            ASSERT_NEAR(got.errors(i, j), want.errors(i, j), 2e-5)
                << i << ", " << j << " of " << rows << " x " << width;
          }
        }
        rows_apart += apart ? 1 : 0;
        if (!apart) {
          ASSERT_NEAR(got.loss(i, 0), want.loss[i], 1e-3 * want.loss[i]);
        }
      }
      EXPECT_LE(rows_apart, 1 + rows / 20) << rows << " x " << width << ", " << bits << " bits";
    }
  }
}

TEST_P(QuantizationTest, GptqPanelGivesARowTheSameBitsWhateverRowsAreBesideIt) {
  const PanelInput all = panel_input(70, 128, 3);
  const PanelResult together = run_panel(backend(), all, 3, 0.0);
  for (const std::int64_t row : {0, 40, 69}) {
    PanelInput one{Matrix(1, 128), all.u, Matrix(1, 128), Matrix(1, 128)};
    for (std::int64_t j = 0; j < 128; ++j) {
      one.w(0, j) = all.w(row, j);
      one.scales(0, j) = all.scales(row, j);
      one.zeros(0, j) = all.zeros(row, j);
    }
    const PanelResult alone = run_panel(backend(), one, 3, 0.0);
    for (std::int64_t j = 0; j < 128; ++j) {
      ASSERT_EQ(alone.codes(0, j), together.codes(row, j));
      ASSERT_EQ(alone.errors(0, j), together.errors(row, j));
    }
    ASSERT_EQ(alone.loss(0, 0), together.loss(row, 0));
  }
}

TEST_P(QuantizationTest, ResultsHaveTheSameBitsWithAnyNumberOfThreads) {
  const PanelInput in = panel_input(40, 128, 4);
  expect_same_bits_with_any_threads(
      [&](Backend& backend) { return run_panel(backend, in, 4, 0.0).errors; });
  expect_same_bits_with_any_threads([&](Backend& backend) {
    return round(backend, in.w, 32, Grid::kAsymGptq, 3, {.steps = 80, .norm = 2.4f}).values;
  });
}

TEST_P(QuantizationTest, RowErrorsAreHalfTheWeightedSquares) {
  const Matrix w = random_matrix(6, 300, 31), value = random_matrix(6, 300, 32);
  Matrix weights = random_matrix(1, 300, 33);
  for (double& weight : weights.values) weight = std::abs(weight);
  Wide device_w(backend(), w), device_value(backend(), value), device_weights(backend(), weights);
  for (const bool with_value : {false, true}) {
    for (const bool weighted : {false, true}) {
      Wide sums(backend(), constant_matrix(6, 1, kNaN));
      backend().row_errors(
          {.w = device_w,
           .value = with_value ? ConstMatrix(device_value) : ConstMatrix(),
           .column_weights = weighted ? ConstMatrix(device_weights) : ConstMatrix(),
           .sums = sums});
      Matrix want(6, 1);
      for (std::int64_t r = 0; r < 6; ++r) {
        for (std::int64_t c = 0; c < 300; ++c) {
          const double d = w(r, c) - (with_value ? value(r, c) : 0.0);
          want(r, 0) += 0.5 * (weighted ? weights(0, c) : 1.0) * d * d;
        }
      }
      expect_near(download(backend(), sums), want, 1e-6);
    }
  }
}

// Codes are the file: every device gives the same. GPTQ's carry on the error of a column, with fused multiply-adds, which a
// CPU without them rounds twice.
TEST_P(QuantizationTest, CodesAreThoseOfTheCpu) {
  const auto cpu = make_backend("cpu", {});
  const Matrix w = random_matrix(50, 256, 35, 0.02);
  for (const Grid grid : kGrids) {
    for (const int bits : {2, 3, 4, 8}) {
      const Rounded here = round(backend(), w, 64, grid, bits);
      const Rounded there = round(*cpu, w, 64, grid, bits);
      EXPECT_EQ(here.scales.values, there.scales.values) << name_of(grid) << bits;
      EXPECT_EQ(here.zeros.values, there.zeros.values) << name_of(grid) << bits;
      EXPECT_EQ(here.codes.values, there.codes.values) << name_of(grid) << bits;
      EXPECT_EQ(here.values.values, there.values.values) << name_of(grid) << bits;
    }
  }
  if (!__builtin_cpu_supports("fma")) return;
  for (const int bits : {2, 4}) {
    const PanelInput in = panel_input(70, 128, bits);
    const PanelResult here = run_panel(backend(), in, bits, 0.5);
    const PanelResult there = run_panel(*cpu, in, bits, 0.5);
    EXPECT_EQ(here.codes.values, there.codes.values) << bits;
    EXPECT_EQ(here.errors.values, there.errors.values) << bits;
    EXPECT_EQ(here.loss.values, there.loss.values) << bits;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, QuantizationTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
