#include "kernels/linear_algebra.h"

#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "base/error.h"
#include "tests/kernels/backend_test.h"

namespace roundhouse {
namespace {

using LinearAlgebraTest = BackendTest;
using reference::Matrix;

// Sums of k products of normal numbers in float32 err by about sqrt(k) 2^-24 of sqrt(k); the
// largest element of the result, the scale of expect_near, is 3 to 5 times sqrt(k).
constexpr double kProductTolerance = 5e-6;

// Types of a product's factors and of its result: all F32, or on a GPU BF16 factors too.
struct ProductTypes {
  DType factors, result;
};
std::vector<ProductTypes> product_types(const Backend& backend) {
  if (backend.activation_type() == DType::kF32) return {{DType::kF32, DType::kF32}};
  return {{DType::kF32, DType::kF32}, {DType::kBF16, DType::kF32}, {DType::kBF16, DType::kBF16}};
}

const double kNaN = std::numeric_limits<double>::quiet_NaN();

Matrix lower(const Matrix& a) {
  Matrix l = a;
  for (std::int64_t i = 0; i < a.rows; ++i) {
    for (std::int64_t j = i + 1; j < a.cols; ++j) l(i, j) = 0.0;
  }
  return l;
}

TEST_P(LinearAlgebraTest, MatmulEqualsTheReferenceForAllTranspositionsAndOddSizes) {
  constexpr std::array<std::array<std::int64_t, 3>, 8> kShapes{{{1, 1, 1},
                                                                {1, 7, 5},
                                                                {7, 1, 3},
                                                                {5, 6, 1},
                                                                {33, 65, 129},
                                                                {257, 300, 70},
                                                                {0, 4, 3},
                                                                {3, 0, 2}}};
  for (const ProductTypes& types : product_types(backend())) {
    for (const auto& [m, n, k] : kShapes) {
      const Matrix a = rounded(types.factors, random_matrix(m, k, 1));
      const Matrix b = rounded(types.factors, random_matrix(k, n, 2));
      const Matrix want = reference::product(a, b);
      for (const bool transpose_a : {false, true}) {
        for (const bool transpose_b : {false, true}) {
          Wide device_a(backend(), transpose_a ? reference::transpose(a) : a, types.factors);
          Wide device_b(backend(), transpose_b ? reference::transpose(b) : b, types.factors);
          Wide c(backend(), constant_matrix(m, n, kNaN), types.result);  // beta is 0: overwritten
          backend().matmul({.a = device_a,
                            .transpose_a = transpose_a,
                            .b = device_b,
                            .transpose_b = transpose_b,
                            .c = c});
          expect_near(download(backend(), c), want, tolerance(types.result, kProductTolerance),
                      "matmul");
        }
      }
    }
  }
}

TEST_P(LinearAlgebraTest, MatmulScalesAndAdds) {
  const Matrix a = random_matrix(20, 30, 3);
  const Matrix b = random_matrix(30, 40, 4);
  const Matrix before = random_matrix(20, 40, 5);
  Matrix want = reference::product(a, b);
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    want.values[i] = -2.0 * want.values[i] + 0.5 * before.values[i];
  }
  Wide device_a(backend(), a);
  Wide device_b(backend(), b);
  Wide c(backend(), before);
  backend().matmul({.a = device_a, .b = device_b, .c = c, .alpha = -2.0f, .beta = 0.5f});
  expect_near(download(backend(), c), want, kProductTolerance);
}

TEST_P(LinearAlgebraTest, AnInnerDimensionOfNothingGivesZeros) {
  Wide a(backend(), Matrix(3, 0));
  Wide b(backend(), Matrix(0, 4));
  Wide c(backend(), constant_matrix(3, 4, kNaN));
  backend().matmul({.a = a, .b = b, .c = c});
  expect_near(download(backend(), c), Matrix(3, 4), 0.0);
  Wide kept(backend(), constant_matrix(3, 4, 2.0));
  backend().matmul({.a = a, .b = b, .c = kept, .beta = 0.5f});
  expect_near(download(backend(), kept), constant_matrix(3, 4, 1.0), 0.0);
}

TEST_P(LinearAlgebraTest, MatmulRefusesShapesThatDoNotFit) {
  Wide a(backend(), Matrix(3, 4));
  Wide b(backend(), Matrix(5, 6));
  Wide c(backend(), Matrix(3, 6));
  EXPECT_THROW(backend().matmul({.a = a, .b = b, .c = c}), Error);
  EXPECT_THROW(backend().matmul({.a = a, .b = a, .transpose_b = true, .c = c}), Error);
}

TEST_P(LinearAlgebraTest, LinearAddsBiasAndAccumulates) {
  constexpr std::int64_t kOutputs = 264;
  for (const ProductTypes& types : product_types(backend())) {
    for (const std::int64_t extra : {3, 8}) {
      for (const std::int64_t rows : {0, 1, 100}) {
        const Matrix x = rounded(types.factors, random_matrix(rows, 77, 6));
        const Matrix w = rounded(types.factors, random_matrix(kOutputs, 77, 7));
        const Matrix bias = rounded(types.factors, random_matrix(1, kOutputs, 8));
        const Matrix before = rounded(types.result, random_matrix(rows, kOutputs, 9));
        const Matrix product = reference::product(x, reference::transpose(w));
        Wide device_x(backend(), x, types.factors);
        Wide device_w(backend(), w, types.factors);
        Wide device_bias(backend(), bias, {types.factors, extra});
        for (const bool has_bias : {false, true}) {
          for (const bool accumulate : {false, true}) {
            Matrix want = product;
            for (std::int64_t i = 0; i < want.rows; ++i) {
              for (std::int64_t j = 0; j < want.cols; ++j) {
                want(i, j) += (has_bias ? bias(0, j) : 0.0) + (accumulate ? before(i, j) : 0.0);
              }
            }
            Wide y(backend(), accumulate ? before : constant_matrix(rows, kOutputs, kNaN),
                   {types.result, extra});
            backend().linear({.x = device_x,
                              .w = device_w,
                              .bias = has_bias ? ConstMatrix(device_bias) : ConstMatrix(),
                              .y = y,
                              .accumulate = accumulate});
            expect_near(download(backend(), y), want, tolerance(types.result, kProductTolerance),
                        "linear");
          }
        }
      }
    }
  }
}

TEST_P(LinearAlgebraTest, GramAddsTheLowerTriangleAndLeavesTheUpperOne) {
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [tokens, k] :
         {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 5}, {600, 270}, {0, 4}, {5, 600}}) {
      const Matrix x = rounded(layout.type, random_matrix(tokens, k, 10));
      const Matrix before = random_matrix(k, k, 11);
      Matrix want = before;
      const Matrix product = reference::product(reference::transpose(x), x);
      for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t j = 0; j <= i; ++j) want(i, j) += product(i, j);
      }
      Wide device_x(backend(), x, layout);
      Wide h(backend(), before);
      backend().gram({.x = device_x, .h = h});
      const Matrix got = download(backend(), h);
      expect_near(got, want, kProductTolerance, "gram");
      for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t j = i + 1; j < k; ++j) ASSERT_EQ(got(i, j), before(i, j));
      }
    }
  }
}

// More columns than a GPU adds by one product.
TEST_P(LinearAlgebraTest, GramOfManyColumns) {
  constexpr std::int64_t kTokens = 3, kColumns = 4200;
  const Matrix x = random_matrix(kTokens, kColumns, 25);
  Wide device_x(backend(), x);
  Tensor h(backend(), DType::kF32, kColumns, kColumns);
  backend().zero(h.view());
  backend().gram({.x = device_x, .h = h.view()});
  for (const std::int64_t row : {0, 2047, 2048, 4095, 4096, 4199}) {
    const Matrix got = download(backend(), h.view().row_range(row, row + 1));
    for (std::int64_t col = 0; col < kColumns; ++col) {
      double want = 0.0;
      for (std::int64_t t = 0; t < kTokens && col <= row; ++t) want += x(t, row) * x(t, col);
      ASSERT_NEAR(got(0, col), want, 1e-5) << row << ", " << col;
    }
  }
}

TEST_P(LinearAlgebraTest, CholeskyOfAHandWorkedMatrix) {
  // [4 2; 2 10] = [2 0; 1 3] [2 1; 0 3]
  Matrix a(2, 2);
  a.values = {4.0, kNaN, 2.0, 10.0};  // the upper triangle is not read
  Wide device(backend(), a);
  ASSERT_TRUE(backend().cholesky({.a = device}));
  EXPECT_EQ(download(backend(), device).values, (std::vector<double>{2.0, 0.0, 1.0, 3.0}));
  Wide empty(backend(), Matrix(0, 0));
  EXPECT_TRUE(backend().cholesky({.a = empty}));
}

TEST_P(LinearAlgebraTest, CholeskyEqualsTheReferenceOnAndOffTheBlocks) {
  for (const std::int64_t n : {1, 2, 63, 64, 65, 128, 200, 333}) {
    const Matrix a = positive_definite(n, 12);
    Wide device(backend(), a);
    ASSERT_TRUE(backend().cholesky({.a = device})) << n;
    // float32 with a condition number of about 400
    expect_near(download(backend(), device), reference::cholesky(a), 2e-5, "cholesky");
  }
}

TEST_P(LinearAlgebraTest, CholeskyHasASmallBackwardErrorForABadCondition) {
  // x_i of sizes from 1 to 1e-5: the condition number is about 1e10, which no float32 factor
  // resolves elementwise; L Lᵀ must still be a to the precision of float32, relative to the sizes
  // of row and column.
  constexpr std::int64_t kSize = 300;
  Matrix a = positive_definite(kSize, 13);
  std::vector<double> size;
  for (std::int64_t i = 0; i < kSize; ++i)
    size.push_back(std::pow(10.0, -5.0 * static_cast<double>(i) / kSize));
  for (std::int64_t i = 0; i < kSize; ++i) {
    for (std::int64_t j = 0; j < kSize; ++j) {
      a(i, j) = static_cast<double>(static_cast<float>(a(i, j) * size[i] * size[j]));
    }
  }
  Wide device(backend(), a);
  ASSERT_TRUE(backend().cholesky({.a = device}));
  const Matrix l = download(backend(), device);
  const Matrix back = reference::product(l, reference::transpose(l));
  for (std::int64_t i = 0; i < kSize; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      ASSERT_NEAR(back(i, j), a(i, j), 2e-6 * std::sqrt(a(i, i) * a(j, j))) << i << " " << j;
    }
  }
}

TEST_P(LinearAlgebraTest, CholeskyReportsWhatIsNotPositiveDefinite) {
  for (const std::int64_t at : {0, 70, 199}) {
    for (const double bad : {0.0, -1.0, kNaN, std::numeric_limits<double>::infinity()}) {
      Matrix a = positive_definite(200, 14);
      a(at, at) = bad;
      Wide device(backend(), a);
      EXPECT_FALSE(backend().cholesky({.a = device})) << at << " " << bad;
    }
  }
  Matrix a = positive_definite(200, 15);
  a(150, 3) = kNaN;
  Wide device(backend(), a);
  EXPECT_FALSE(backend().cholesky({.a = device})) << "NaN beside the diagonal";
}

TEST_P(LinearAlgebraTest, TriangularInverseEqualsTheReference) {
  for (const std::int64_t n : {0, 1, 2, 64, 65, 130, 300}) {
    const Matrix l = lower(reference::cholesky(positive_definite(n, 16)));
    Wide device(backend(), l);
    backend().triangular_inverse({.l = device});
    Matrix stored = l;
    for (double& value : stored.values) value = static_cast<double>(static_cast<float>(value));
    // float32 with a condition number of about 20
    expect_near(download(backend(), device), reference::triangular_inverse(stored), 2e-5,
                "triangular_inverse");
  }
}

TEST_P(LinearAlgebraTest, SymmetrizeReverseAndAddMoveElementsExactly) {
  for (const std::int64_t n : {1, 2, 65, 130}) {
    const Matrix a = random_matrix(n, n, 17);
    Wide device(backend(), a);
    Wide reversed(backend(), constant_matrix(n, n, kNaN));
    backend().reverse(device, reversed);
    backend().symmetrize(device);
    const Matrix symmetric = download(backend(), device);
    const Matrix backwards = download(backend(), reversed);
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        ASSERT_EQ(symmetric(i, j), a(std::max(i, j), std::min(i, j)));
        ASSERT_EQ(backwards(i, j), a(n - 1 - i, n - 1 - j));
      }
    }
  }
  for (const std::int64_t extra : {3, 8}) {
    const Matrix a = random_matrix(7, 56, 18);
    const Matrix b = random_matrix(7, 56, 19);
    Wide from(backend(), a, {.extra = extra});
    Wide into(backend(), b, {.extra = extra});
    backend().add(from, into);
    const Matrix sum = download(backend(), into);
    for (std::size_t i = 0; i < sum.values.size(); ++i) {
      ASSERT_EQ(static_cast<float>(sum.values[i]),
                static_cast<float>(a.values[i]) + static_cast<float>(b.values[i]));
    }
  }
}

// Float by float as the tree says, also into the first of them.
TEST_P(LinearAlgebraTest, AddsUpAFewMatricesAtOnce) {
  for (const std::int64_t extra : {3, 8}) {
    std::vector<Matrix> terms;
    for (std::uint64_t i = 0; i < 4; ++i) terms.push_back(random_matrix(7, 56, 30 + i));
    const Matrix before = random_matrix(7, 56, 40);
    for (int count = 1; count <= AddUp::kMost; ++count) {
      for (const bool accumulate : {false, true}) {
        std::vector<Wide> from;
        for (const Matrix& term : terms) from.emplace_back(backend(), term, Layout{.extra = extra});
        Wide apart(backend(), before, {.extra = extra});
        Wide& into = accumulate ? apart : from.front();
        AddUp op{.from = {}, .count = count, .accumulate = accumulate, .into = into};
        for (int i = 0; i < count; ++i) op.from[i] = from[i];
        backend().add_up(op);
        const Matrix got = download(backend(), into);
        for (std::size_t at = 0; at < got.values.size(); ++at) {
          const auto term = [&](std::size_t i) { return static_cast<float>(terms[i].values[at]); };
          float want = term(0);
          if (count > 1) want += term(1);
          if (count == 3) want += term(2);
          if (count == 4) want += term(2) + term(3);
          if (accumulate) want = static_cast<float>(before.values[at]) + want;
          ASSERT_EQ(static_cast<float>(got.values[at]), want) << count << " matrices";
        }
      }
    }
  }
  Wide a(backend(), Matrix(3, 4)), b(backend(), Matrix(3, 5));
  EXPECT_THROW(backend().add_up({.from = {a, b}, .count = 2, .into = a}), Error);
  EXPECT_THROW(backend().add_up({.from = {a, a}, .count = 5, .into = a}), Error);
}

TEST_P(LinearAlgebraTest, ScalesEachValueByOneMultiplication) {
  const Matrix values = random_matrix(9, 70, 23);
  Wide device(backend(), values);
  backend().scale(0.3f, device);
  const Matrix scaled = download(backend(), device);
  for (std::size_t i = 0; i < scaled.values.size(); ++i) {
    ASSERT_EQ(static_cast<float>(scaled.values[i]), 0.3f * static_cast<float>(values.values[i]));
  }
}

TEST_P(LinearAlgebraTest, GathersRowsAndColumns) {
  const auto index = [&](const std::vector<std::int32_t>& places) {
    HostTensor host(DType::kI32, {1, static_cast<std::int64_t>(places.size())});
    std::ranges::copy(places, host.as<std::int32_t>().begin());
    Tensor tensor = Tensor::upload(backend(), host.view(), DType::kI32);
    backend().sync();
    return tensor;
  };
  for (const DType type : {DType::kF32, DType::kU8}) {
    Matrix values(5, 40);
    for (std::size_t i = 0; i < values.values.size(); ++i)
      values.values[i] = static_cast<double>(i);
    Wide from(backend(), values, type);
    Random random(24);
    std::vector<std::int32_t> rows{4, -1, 0, 0, 2, 3, 1}, cols(70);
    for (std::int32_t& col : cols) col = static_cast<std::int32_t>(random.below(41)) - 1;
    const Tensor row_index = index(rows), col_index = index(cols);
    const auto check = [&](ConstMatrix row_places, ConstMatrix col_places, std::int64_t height,
                           std::int64_t width) {
      Wide to(backend(), constant_matrix(height, width, 9), type);
      backend().gather({.from = from, .rows = row_places, .cols = col_places, .to = to});
      const Matrix got = download(backend(), to);
      for (std::int64_t i = 0; i < height; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          const std::int64_t r = row_places.data ? rows[i] : i;
          const std::int64_t c = col_places.data ? cols[j] : j;
          ASSERT_EQ(got(i, j), r < 0 || c < 0 ? 0.0 : values(r, c)) << i << ", " << j;
        }
      }
    };
    check(row_index.view(), col_index.view(), 7, 70);
    check({}, col_index.view(), 5, 70);
    check(row_index.view(), {}, 7, 40);
    check({}, {}, 5, 40);
  }
}

// Shapes with several tiles, the last ones cut off.
TEST_P(LinearAlgebraTest, ResultsHaveTheSameBitsWithAnyNumberOfThreads) {
  const Matrix x = random_matrix(700, 530, 20);
  const Matrix w = random_matrix(600, 530, 21);
  expect_same_bits_with_any_threads([&](Backend& backend) {
    Wide device_x(backend, x);
    Wide device_w(backend, w);
    Wide y(backend, Matrix(700, 600));
    backend.linear({.x = device_x, .w = device_w, .bias = {}, .y = y});
    return download(backend, y);
  });
  expect_same_bits_with_any_threads([&](Backend& backend) {  // one tile: nothing to share
    Wide device_x(backend, x);
    Wide y(backend, Matrix(5, 5));
    const ConstMatrix columns = ConstMatrix(device_x).col_range(0, 5);
    backend.matmul({.a = columns, .transpose_a = true, .b = columns, .c = y});
    return download(backend, y);
  });
  expect_same_bits_with_any_threads([&](Backend& backend) {
    Wide device_x(backend, x);
    Wide h(backend, Matrix(530, 530));
    backend.gram({.x = device_x, .h = h});
    return download(backend, h);
  });
  const Matrix a = positive_definite(700, 22);
  expect_same_bits_with_any_threads([&](Backend& backend) {
    Wide device(backend, a);
    EXPECT_TRUE(backend.cholesky({.a = device}));
    backend.triangular_inverse({.l = device});
    return download(backend, device);
  });
}

// Products of activations with BF16 factors.
class CpuPrecisionTest : public testing::Test {
 protected:
  void SetUp() override {
    try {
      backend_ = make_backend("cpu", {.threads = 1, .bf16 = true});
    } catch (const InputError&) {
      GTEST_SKIP() << "this processor has no products of BF16";
    }
  }
  // Of the rounded values, with sums in F32, whoever shares the work. Rounding changes each factor by 2^-9 of itself at most.
  void expect_product(const std::function<Matrix(Backend&)>& compute, const Matrix& a,
                      const Matrix& b, const Matrix& added) {
    const auto sum = [&](Matrix product) {
      for (std::size_t i = 0; i < product.values.size(); ++i) product.values[i] += added.values[i];
      return product;
    };
    const Matrix got = compute(*backend_);
    const Matrix rounded_factors =
        reference::product(rounded(DType::kBF16, a), rounded(DType::kBF16, b));
    expect_near(got, sum(rounded_factors), kProductTolerance);
    const auto absolute = [](Matrix m) {
      for (double& value : m.values) value = std::abs(value);
      return m;
    };
    const Matrix exact = sum(reference::product(a, b)),
                 magnitude = reference::product(absolute(a), absolute(b));
    for (std::size_t i = 0; i < exact.values.size(); ++i) {
      const double bound = (0x1p-8 + 0x1p-18 + kProductTolerance) * magnitude.values[i] + 1e-5;
      ASSERT_NEAR(got.values[i], exact.values[i], bound);
    }
    for (const int threads : {2, 3})
      EXPECT_EQ(compute(*make_backend("cpu", {.threads = threads, .bf16 = true})).values,
                got.values);
    // The setting changes nothing else: without it, the same call is one in F32.
    expect_near(compute(*make_backend("cpu", {.threads = 2})), exact, kProductTolerance);
  }

  std::unique_ptr<Backend> backend_;
};

TEST_F(CpuPrecisionTest, MatmulOfActivations) {
  constexpr std::int64_t m = 300, n = 577, k = 129;
  const Matrix a = random_matrix(m, k, 1), b = random_matrix(k, n, 2),
               before = random_matrix(m, n, 3);
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      for (const float beta : {0.0f, 1.0f}) {
        const auto compute = [&](Backend& on, bool of_activations) {
          Wide x(on, transpose_a ? reference::transpose(a) : a);
          Wide y(on, transpose_b ? reference::transpose(b) : b);
          Wide c(on, beta == 0.0f ? constant_matrix(m, n, kNaN) : before);
          on.matmul({.a = x,
                     .transpose_a = transpose_a,
                     .b = y,
                     .transpose_b = transpose_b,
                     .c = c,
                     .beta = beta,
                     .of_activations = of_activations});
          return download(on, c);
        };
        expect_product([&](Backend& on) { return compute(on, true); }, a, b,
                       beta == 0.0f ? Matrix(m, n) : before);
        EXPECT_EQ(compute(*backend_, false).values,
                  compute(*make_backend("cpu", {.threads = 2}), false).values);
      }
    }
  }
}

TEST_F(CpuPrecisionTest, LinearWithABias) {
  constexpr std::int64_t m = 200, n = 577, k = 129;
  const Matrix x = random_matrix(m, k, 4), w = random_matrix(n, k, 5),
               bias = random_matrix(1, n, 6);
  Matrix added(m, n);
  for (std::int64_t row = 0; row < m; ++row) {
    for (std::int64_t col = 0; col < n; ++col) added(row, col) = bias(0, col);
  }
  const auto linear = [&](Backend& on, std::int64_t rows) {
    Wide device_x(on, x), device_w(on, w), device_bias(on, bias),
        y(on, constant_matrix(rows, n, kNaN));
    on.linear({.x = ConstMatrix(device_x).row_range(0, rows),
               .w = device_w,
               .bias = device_bias,
               .y = y});
    return download(on, y);
  };
  expect_product([&](Backend& on) { return linear(on, m); }, x, reference::transpose(w), added);
  // Few rows are not worth the rounding.
  EXPECT_EQ(linear(*backend_, 8).values, linear(*make_backend("cpu", {.threads = 2}), 8).values);
}

// Several slabs and tiles, on what is there already; above the diagonal it stays.
TEST_F(CpuPrecisionTest, Gram) {
  constexpr std::int64_t t = 1100, k = 300;
  const Matrix x = random_matrix(t, k, 7), before = random_matrix(k, k, 8);
  const auto gram = [&](Backend& on) {
    Wide device_x(on, x), h(on, before);
    on.gram({.x = device_x, .h = h});
    return download(on, h);
  };
  const Matrix got = gram(*backend_);
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = i + 1; j < k; ++j) ASSERT_EQ(got(i, j), before(i, j));
  }
  // Of the whole for the comparison: the lower triangle mirrored.
  Matrix mirrored(k, k);
  for (std::int64_t i = 0; i < k; ++i) {
    for (std::int64_t j = 0; j < k; ++j) mirrored(i, j) = before(std::max(i, j), std::min(i, j));
  }
  expect_product(
      [&](Backend& on) {
        Matrix h = gram(on);
        for (std::int64_t i = 0; i < k; ++i) {
          for (std::int64_t j = i + 1; j < k; ++j) h(i, j) = h(j, i);
        }
        return h;
      },
      reference::transpose(x), x, mirrored);
}

TEST_F(CpuPrecisionTest, ItIsPartOfWhatComputes) {
  const std::string plain = make_backend("cpu", {.threads = 1})->computes_as();
  EXPECT_THAT(backend_->computes_as(), testing::StartsWith(plain + ", BF16 products by "));
  EXPECT_THAT(backend_->description(), testing::HasSubstr("products in BF16"));
}

TEST(CpuPrecisionDeathTest, IsRefusedWhereTheProcessorHasNoSuchProducts) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // oneDNN looks at the variable once a process
  EXPECT_EXIT(
      {
        ::setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
        try {
          make_backend("cpu", {.threads = 1, .bf16 = true});
        } catch (const InputError& error) {
          std::fputs(error.what(), stderr);
          std::exit(2);
        }
        std::exit(0);
      },
      testing::ExitedWithCode(2),
      "cpu_precision: bf16: this processor, or oneDNN .* has no products of BF16.*set it to f32");
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearAlgebraTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
