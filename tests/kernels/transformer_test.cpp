#include "kernels/transformer.h"

#include <array>

#include "base/error.h"
#include "tests/kernels/backend_test.h"

namespace roundhouse {
namespace {

using TransformerTest = BackendTest;
using reference::Matrix;

// A few roundings of float32 (2^-24 = 6e-8), relative to the largest element of the result.
constexpr double kFewRoundings = 1e-6;

const double kNaN = std::numeric_limits<double>::quiet_NaN();
const double kInfinity = std::numeric_limits<double>::infinity();

TEST_P(TransformerTest, RmsNormOfAHandWorkedRow) {
  // mean of squares of (3, 4, 0, 0) is 25 / 4
  Matrix x(2, 4);
  x.values = {3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  Matrix weight(1, 4);
  weight.values = {1.0, 10.0, 1.0, 1.0};
  Wide device(backend(), x);
  Wide device_weight(backend(), weight);
  backend().rms_norm({.x = device, .weight = device_weight, .y = device, .epsilon = 0.0f});
  Matrix want(2, 4);
  want.values = {1.2, 16.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0};  // the row of zeros stays one
  expect_near(download(backend(), device), want, kFewRoundings);
}

TEST_P(TransformerTest, RmsNormEqualsTheReference) {
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [rows, cols] :
         {std::pair<std::int64_t, std::int64_t>{0, 8}, {1, 1}, {3, 17}, {40, 1031}, {2, 5000}}) {
      const Matrix x = rounded(layout.type, random_matrix(rows, cols, 1, 100.0));
      const Matrix weight = rounded(layout.type, random_matrix(1, cols, 2));
      Wide device_x(backend(), x, layout);
      Wide device_weight(backend(), weight, layout);
      Wide y(backend(), constant_matrix(rows, cols, kNaN), layout);
      backend().rms_norm({.x = device_x, .weight = device_weight, .y = y, .epsilon = 1e-5f});
      expect_near(download(backend(), y), reference::rms_norm(x, weight, 1e-5),
                  tolerance(layout.type, kFewRoundings), "rms_norm");
      backend().rms_norm(
          {.x = device_x, .weight = device_weight, .y = y, .epsilon = 1e-5f, .offset = 1.0f});
      expect_near(download(backend(), y), reference::rms_norm(x, weight, 1e-5, 1.0),
                  tolerance(layout.type, kFewRoundings), "rms_norm with an offset");
    }
  }
}

TEST_P(TransformerTest, LayerNormOfHandWorkedRows) {
  // Row 0: mean 2, biased variance (1 + 9 + 1 + 9) / 4 = 5; with epsilon 4 the divisor is 3.
  Matrix x(2, 4);
  x.values = {1.0, 5.0, 3.0, -1.0, 7.0, 7.0, 7.0, 7.0};
  Matrix weight(1, 4);
  weight.values = {3.0, 1.0, -3.0, 0.0};
  Matrix bias(1, 4);
  bias.values = {0.5, 0.0, 0.0, 9.0};
  Wide device(backend(), x);
  Wide device_weight(backend(), weight);
  Wide device_bias(backend(), bias);
  backend().layer_norm(
      {.x = device, .weight = device_weight, .bias = device_bias, .y = device, .epsilon = 4.0f});
  Matrix want(2, 4);
  want.values = {-0.5, 1.0, -1.0, 9.0, 0.5, 0.0, 0.0, 9.0};  // of a constant row the bias is left
  expect_near(download(backend(), device), want, kFewRoundings);

  Wide constant(backend(), constant_matrix(1, 4, 7.0));
  backend().layer_norm({.x = constant,
                        .weight = device_weight,
                        .bias = device_bias,
                        .y = constant,
                        .epsilon = 0.0f});
  EXPECT_EQ(download(backend(), constant).values, bias.values);
}

TEST_P(TransformerTest, LayerNormEqualsTheReference) {
  // The offset is far larger than the spread: a variance from the mean of squares would have lost
  // all its digits.
  for (const Layout& layout : layouts(backend())) {
    for (const double offset : {0.0, layout.type == DType::kF32 ? 3000.0 : 10.0}) {
      for (const auto& [rows, cols] :
           {std::pair<std::int64_t, std::int64_t>{0, 8}, {3, 17}, {40, 1031}, {2, 5000}}) {
        Matrix x = random_matrix(rows, cols, 1);
        for (double& value : x.values) value += offset;
        x = rounded(layout.type, x);
        const Matrix weight = rounded(layout.type, random_matrix(1, cols, 2));
        const Matrix bias = rounded(layout.type, random_matrix(1, cols, 3));
        Wide device_x(backend(), x, layout);
        Wide device_weight(backend(), weight, layout);
        Wide device_bias(backend(), bias, layout);
        Wide y(backend(), constant_matrix(rows, cols, kNaN), layout);
        backend().layer_norm({.x = device_x,
                              .weight = device_weight,
                              .bias = device_bias,
                              .y = y,
                              .epsilon = 1e-5f});
        // A mean of 3000 in float32 is off by 1e-4.
        expect_near(download(backend(), y), reference::layer_norm(x, weight, bias, 1e-5),
                    tolerance(layout.type, offset == 0.0 ? kFewRoundings : 3e-4), "layer_norm");
      }
    }
  }
}

TEST_P(TransformerTest, RopeTurnsPairsOfAHandWorkedHead) {
  // Position 1 turns by 90 degrees: (a, b) becomes (-b, a). Position 0 does not turn, in the second
  // sequence either.
  Matrix x(4, 4);
  x.values = {1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 5, 6, 7, 8};
  Matrix cos(2, 2), sin(2, 2);
  cos.values = {1, 1, 0, 0};
  sin.values = {0, 0, 1, 1};
  Wide device(backend(), x);
  Wide device_cos(backend(), cos);
  Wide device_sin(backend(), sin);
  backend().rope(
      {.x = device, .cos = device_cos, .sin = device_sin, .heads = 1, .head_dim = 4, .length = 2});
  EXPECT_EQ(download(backend(), device).values,
            (std::vector<double>{1, 2, 3, 4, -3, -4, 1, 2, 5, 6, 7, 8, -7, -8, 5, 6}));
}

TEST_P(TransformerTest, RopeEqualsTheReference) {
  constexpr std::int64_t kHeads = 3, kLength = 11;
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t half : {1, 8, 33}) {
      const Matrix x = rounded(layout.type, random_matrix(2 * kLength, kHeads * 2 * half, 3));
      const Matrix cos = random_matrix(kLength + 4, half, 4);  // tables may be longer
      const Matrix sin = random_matrix(kLength + 4, half, 5);
      Wide device(backend(), x, layout);
      Wide device_cos(backend(), cos, {.extra = layout.extra});
      Wide device_sin(backend(), sin, {.extra = layout.extra});
      backend().rope({.x = device,
                      .cos = device_cos,
                      .sin = device_sin,
                      .heads = kHeads,
                      .head_dim = 2 * half,
                      .length = kLength});
      expect_near(download(backend(), device), reference::rope(x, cos, sin, kHeads, kLength),
                  tolerance(layout.type, kFewRoundings), "rope");
    }
  }
}

// Heads that are rotated in part: there and back, with rows of every layout.
TEST_P(TransformerTest, RopeLeavesTheLastColumnsOfAHeadAsTheyAre) {
  constexpr std::int64_t kHeads = 3, kLength = 5, kHalf = 8;
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t head_dim : {17, 20, 24, 32}) {
      const Matrix x = rounded(layout.type, random_matrix(2 * kLength, kHeads * head_dim, 6));
      const Matrix cos = random_matrix(kLength, kHalf, 7), sin = random_matrix(kLength, kHalf, 8);
      Wide device_cos(backend(), cos, {.extra = layout.extra});
      Wide device_sin(backend(), sin, {.extra = layout.extra});
      for (const bool backward : {false, true}) {
        Matrix want = x, turn = sin;
        if (backward) {
          for (double& value : turn.values) value = -value;
        }
        for (std::int64_t head = 0; head < kHeads; ++head) {
          Matrix part(x.rows, 2 * kHalf);
          for (std::int64_t i = 0; i < x.rows; ++i) {
            for (std::int64_t j = 0; j < part.cols; ++j) part(i, j) = x(i, head * head_dim + j);
          }
          part = reference::rope(part, cos, turn, 1, kLength);
          for (std::int64_t i = 0; i < x.rows; ++i) {
            for (std::int64_t j = 0; j < part.cols; ++j) want(i, head * head_dim + j) = part(i, j);
          }
        }
        Wide device(backend(), x, layout);
        backend().rope({.x = device,
                        .cos = device_cos,
                        .sin = device_sin,
                        .heads = kHeads,
                        .head_dim = head_dim,
                        .length = kLength,
                        .backward = backward});
        const Matrix got = download(backend(), device);
        expect_near(got, want, tolerance(layout.type, kFewRoundings), "rope");
        for (std::int64_t i = 0; i < x.rows; ++i) {
          for (std::int64_t j = 0; j < x.cols; ++j) {
            if (j % head_dim >= 2 * kHalf) {
              ASSERT_EQ(got(i, j), x(i, j)) << i << ", " << j;
            }
          }
        }
      }
    }
  }
}

TEST_P(TransformerTest, RopeOfMoreColumnsThanAHeadHasIsRefused) {
  Wide x(backend(), Matrix(2, 8)), table(backend(), Matrix(2, 3));
  EXPECT_THROW(
      backend().rope({.x = x, .cos = table, .sin = table, .heads = 2, .head_dim = 4, .length = 2}),
      Error);
}

TEST_P(TransformerTest, ScaledSumAddsOrOverwrites) {
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {1, 8, 33}) {
      const Matrix x = rounded(layout.type, random_matrix(7, cols, 9));
      const Matrix y = rounded(layout.type, random_matrix(7, cols, 10));
      for (const bool accumulate : {true, false}) {
        Matrix want = x;
        for (std::size_t i = 0; i < want.values.size(); ++i) {
          want.values[i] = 0.375 * x.values[i] + (accumulate ? y.values[i] : 0.0);
        }
        Wide device_x(backend(), x, layout);
        // What is overwritten may be anything.
        Wide device_y(backend(), accumulate ? y : constant_matrix(7, cols, kNaN), layout);
        backend().scaled_sum(
            {.x = device_x, .scale = 0.375f, .y = device_y, .accumulate = accumulate});
        expect_near(download(backend(), device_y), want, tolerance(layout.type, kFewRoundings),
                    "scaled_sum");
        if (accumulate) continue;
        backend().scaled_sum({.x = device_x, .scale = 0.375f, .y = device_x, .accumulate = false});
        expect_near(download(backend(), device_x), want, tolerance(layout.type, kFewRoundings),
                    "in place");
      }
    }
  }
  Wide x(backend(), Matrix(2, 3)), other(backend(), Matrix(2, 4));
  EXPECT_THROW(backend().scaled_sum({.x = x, .y = other}), Error);
}

struct AttentionShape {
  std::int64_t sequences, length, heads, kv_heads, head_dim, window;
  double score_cap = 0.0;
};

Matrix attend(Backend& backend, const AttentionShape& shape, const Matrix& q, const Matrix& k,
              const Matrix& v, double scale, const Layout& layout = {}) {
  Wide device_q(backend, q, layout);
  Wide device_k(backend, k, layout);
  Wide device_v(backend, v, layout);
  Wide out(backend, constant_matrix(q.rows, q.cols, kNaN), layout);
  backend.attention({.q = device_q,
                     .k = device_k,
                     .v = device_v,
                     .out = out,
                     .heads = shape.heads,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .length = shape.length,
                     .window = shape.window,
                     .scale = static_cast<float>(scale),
                     .score_cap = static_cast<float>(shape.score_cap)});
  return download(backend, out);
}

void expect_attention_near_reference(Backend& backend, const AttentionShape& s) {
  for (const Layout& layout : layouts(backend)) {
    const std::int64_t tokens = s.sequences * s.length;
    const Matrix q = rounded(layout.type, random_matrix(tokens, s.heads * s.head_dim, 6));
    const Matrix k = rounded(layout.type, random_matrix(tokens, s.kv_heads * s.head_dim, 7));
    const Matrix v = rounded(layout.type, random_matrix(tokens, s.kv_heads * s.head_dim, 8));
    const double scale = static_cast<double>(1.0f / std::sqrt(static_cast<float>(s.head_dim)));
    // Scores of up to 5 in float32 err by 1e-6, which the exponential passes on.
    expect_near(
        attend(backend, s, q, k, v, scale, layout),
        reference::attention(q, k, v, s.heads, s.kv_heads, s.length, s.window, scale, s.score_cap),
        tolerance(layout.type, 5e-6),
        "attention, length " + std::to_string(s.length) + ", heads of " +
            std::to_string(s.head_dim) + ", window " + std::to_string(s.window));
  }
}

TEST_P(TransformerTest, AttentionEqualsTheReference) {
  // One token; grouped queries; blocks cut off; windows shorter than a block, across blocks, and
  // longer than the text; the heads that GPUs have special kernels for.
  constexpr std::array<AttentionShape, 12> kShapes{{{1, 1, 1, 1, 4, 0},
                                                    {2, 5, 2, 1, 8, 0},
                                                    {2, 5, 2, 2, 8, 1},
                                                    {1, 130, 4, 2, 16, 0},
                                                    {1, 130, 2, 2, 5, 7},
                                                    {1, 700, 2, 1, 64, 0},
                                                    {1, 700, 1, 1, 16, 30},
                                                    {1, 1200, 1, 1, 8, 600},
                                                    {3, 17, 2, 1, 128, 100},
                                                    {2, 300, 2, 1, 64, 70},
                                                    {1, 300, 4, 2, 128, 0},
                                                    {2, 100, 1, 1, 256, 33}}};
  for (const AttentionShape& s : kShapes) expect_attention_near_reference(backend(), s);
}

TEST_P(TransformerTest, AttentionOfHeadsOfAnySizeEqualsTheReference) {
  for (const std::int64_t head_dim : kHeadSizes) {
    expect_attention_near_reference(backend(), {2, 37, 4, 2, head_dim, 0});
    expect_attention_near_reference(backend(), {1, 140, 2, 1, head_dim, 50});
  }
}

// Scores of up to 5, whose caps bend them much or a little; on a GPU, of heads of every kernel.
TEST_P(TransformerTest, AttentionWithCappedScoresEqualsTheReference) {
  for (const std::int64_t head_dim : kHeadSizes) {
    expect_attention_near_reference(backend(), {1, 37, 2, 1, head_dim, 20, 1.5});
  }
  expect_attention_near_reference(backend(), {1, 140, 1, 1, 64, 50, 20.0});
}

TEST_P(TransformerTest, AttentionBearsScoresThatOverflowAPlainExponential) {
  for (const Layout& layout : layouts(backend())) {
    const AttentionShape s{1, 600, 1, 1, 64, 0};
    const Matrix q = rounded(layout.type, random_matrix(600, 64, 9, 10.0));
    const Matrix k = rounded(layout.type, random_matrix(600, 64, 10, 10.0));
    const Matrix v = rounded(layout.type, random_matrix(600, 64, 11));
    // Scores reach 1600 and err by 1e-4.
    expect_near(attend(backend(), s, q, k, v, 0.5, layout),
                reference::attention(q, k, v, 1, 1, 600, 0, 0.5), tolerance(layout.type, 1e-3));
  }
}

TEST_P(TransformerTest, ANaNReachesTheTokensThatSeeItAndNoOthers) {
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t head_dim : {8, 64}) {
      const AttentionShape s{1, 300, 1, 1, head_dim, 0};
      const Matrix q = random_matrix(300, head_dim, 12);
      const Matrix k = random_matrix(300, head_dim, 13);
      const Matrix v = random_matrix(300, head_dim, 14);
      const Matrix clean = attend(backend(), s, q, k, v, 0.3, layout);
      Matrix bad_k = k;
      bad_k(200, 0) = kNaN;
      const Matrix got = attend(backend(), s, q, bad_k, v, 0.3, layout);
      for (std::int64_t i = 0; i < 300; ++i) {
        ASSERT_EQ(std::isnan(got(i, 0)), i >= 200) << i;
        if (i < 200) {
          ASSERT_EQ(got(i, 0), clean(i, 0)) << i;
        }
      }
    }
  }
}

TEST_P(TransformerTest, SoftCapEqualsTheReference) {
  for (const std::int64_t cols : {1, 8, 33}) {
    Matrix x = random_matrix(5, cols, 17, 60.0);
    x(0, 0) = 1e6;
    x(1, 0) = -1e6;
    x(2, 0) = 1e-4;
    Wide device(backend(), x), y(backend(), constant_matrix(5, cols, kNaN));
    backend().soft_cap({.x = device, .y = y, .cap = 30.0f});
    backend().soft_cap({.x = device, .y = device, .cap = 30.0f});
    const Matrix want = reference::soft_cap(x, 30.0), got = download(backend(), device);
    EXPECT_EQ(download(backend(), y).values, got.values);
    for (std::size_t i = 0; i < want.values.size(); ++i) {
      ASSERT_NEAR(got.values[i], want.values[i], 1e-6 * std::abs(want.values[i])) << i;
    }
  }
  Wide x(backend(), Matrix(2, 3));
  EXPECT_THROW(backend().soft_cap({.x = x, .y = x, .cap = 0.0f}), Error);
}

TEST_P(TransformerTest, GatesOfLargeValuesAndOfTheReference) {
  Matrix gate(1, 6);
  gate.values = {0.0, 200.0, -200.0, -kInfinity, kNaN, 1.0};
  Wide device_gate(backend(), gate);
  Wide ones(backend(), constant_matrix(1, 6, 1.0));
  Wide y(backend(), constant_matrix(1, 6, kNaN));
  backend().gated_product({.gate = device_gate, .up = ones, .y = y});
  const Matrix got = download(backend(), y);
  EXPECT_EQ(got(0, 0), 0.0);
  EXPECT_EQ(got(0, 1), 200.0);
  EXPECT_NEAR(got(0, 2), 0.0, 1e-35);
  EXPECT_TRUE(std::isnan(got(0, 4)));
  EXPECT_NEAR(got(0, 5), 0.7310585786, 1e-7);
  backend().gated_product(
      {.gate = device_gate, .up = ones, .y = y, .function = GateFunction::kGeluTanh});
  const Matrix gelu = download(backend(), y);
  EXPECT_EQ(gelu(0, 0), 0.0);
  EXPECT_EQ(gelu(0, 1), 200.0);
  EXPECT_NEAR(gelu(0, 2), 0.0, 1e-35);
  EXPECT_TRUE(std::isnan(gelu(0, 4)));
  EXPECT_NEAR(gelu(0, 5), 0.8411919906, 1e-7);

  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {0, 1, 19, 1000}) {
      const Matrix g = rounded(layout.type, random_matrix(7, cols, 15, 4.0));
      const Matrix up = rounded(layout.type, random_matrix(7, cols, 16));
      for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
        Wide device_g(backend(), g, layout);
        Wide device_up(backend(), up, layout);
        backend().gated_product(
            {.gate = device_g, .up = device_up, .y = device_up, .function = function});
        expect_near(download(backend(), device_up), reference::gated_product(g, up, function),
                    tolerance(layout.type, kFewRoundings), "gated product");
      }
    }
  }
}

TEST_P(TransformerTest, ReluCutsBelowZeroAndKeepsNaN) {
  Matrix x(1, 6);
  x.values = {-1.0, 0.0, 2.5, -kInfinity, kInfinity, kNaN};
  Wide device(backend(), x);
  backend().relu({.x = device, .y = device});
  const Matrix got = download(backend(), device);
  EXPECT_EQ(std::vector<double>(got.values.begin(), got.values.end() - 1),
            (std::vector<double>{0.0, 0.0, 2.5, 0.0, kInfinity}));
  EXPECT_TRUE(std::isnan(got(0, 5)));

  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {0, 1, 19, 1000}) {
      const Matrix values = rounded(layout.type, random_matrix(7, cols, 15));
      Wide device_x(backend(), values, layout);
      Wide y(backend(), constant_matrix(7, cols, kNaN), layout);
      backend().relu({.x = device_x, .y = y});
      EXPECT_EQ(download(backend(), y).values, reference::relu(values).values);
    }
  }
}

TEST_P(TransformerTest, CrossEntropyOfEqualLogitsIsTheLogarithmOfTheirNumber) {
  Wide logits(backend(), constant_matrix(2, 1000, 3.0));
  const std::vector<std::int32_t> target{5, -1};
  std::vector<float> loss(2, -1.0f);
  backend().cross_entropy({.logits = logits, .target = target, .loss = loss});
  EXPECT_NEAR(loss[0], std::log(1000.0), 1e-5);
  EXPECT_EQ(loss[1], 0.0f) << "not scored";
}

TEST_P(TransformerTest, CrossEntropyEqualsTheReference) {
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t vocabulary : {1, 7, 5003, 4096}) {
      const Matrix logits = rounded(layout.type, random_matrix(30, vocabulary, 17, 20.0));
      std::vector<std::int32_t> target;
      for (int i = 0; i < 30; ++i)
        target.push_back((i * 37) % static_cast<std::int32_t>(vocabulary));
      target[11] = -1;
      std::vector<float> loss(30);
      std::vector<std::int32_t> largest(30);
      Wide device(backend(), logits, layout);
      backend().cross_entropy(
          {.logits = device, .target = target, .loss = loss, .largest = largest});
      std::vector<std::int64_t> columns = reference::largest_columns(logits);
      columns[11] = -1;
      EXPECT_EQ(std::vector<std::int64_t>(largest.begin(), largest.end()), columns);
      const std::vector<double> want = reference::cross_entropy(logits, target);
      for (std::size_t i = 0; i < 30; ++i) {
        ASSERT_NEAR(static_cast<double>(loss[i]), want[i], 2e-6 * (1.0 + want[i])) << vocabulary;
      }
    }
  }
  Wide device(backend(), Matrix(1, 4));
  const std::vector<std::int32_t> outside{4};
  std::vector<float> loss(1);
  EXPECT_THROW(backend().cross_entropy({.logits = device, .target = outside, .loss = loss}), Error);
  const std::vector<std::int32_t> inside{3};
  std::vector<std::int32_t> largest(2);
  EXPECT_THROW(backend().cross_entropy(
                   {.logits = device, .target = inside, .loss = loss, .largest = largest}),
               Error);
}

// Where the largest logits are equal, at every place of a row that a thread or a vector may have.
TEST_P(TransformerTest, TheFirstOfTheLargestLogitsCounts) {
  constexpr std::int64_t kVocabulary = 5000;
  const std::vector<std::int32_t> first{0, 1, 15, 16, 255, 256, 1023, 1024, 2048, 4991, 4998};
  const auto rows = std::ssize(first);
  Matrix logits = random_matrix(rows, kVocabulary, 24);
  Matrix others = constant_matrix(rows, kVocabulary, -kInfinity);
  for (std::int64_t i = 0; i < rows; ++i) {
    const double most = i % 2 == 0 ? 7.0 : -0.0;  // and 0 is no more than -0
    for (std::int64_t j = 0; most == 0.0 && j < kVocabulary; ++j)
      logits(i, j) = -std::abs(logits(i, j)) - 1;
    for (std::int64_t j = first[i]; j < kVocabulary; j += 7)
      logits(i, j) = j == first[i] ? most : std::abs(most);
    logits(i, kVocabulary - 1) = std::abs(most);
    others(i, first[i]) = -1e30;
  }
  const std::vector<std::int32_t> target(first.size(), 0);
  std::vector<float> loss(first.size());
  std::vector<std::int32_t> largest(first.size());
  for (const std::int64_t extra : {3, 8}) {
    for (const Matrix& m : {logits, others}) {
      Wide device(backend(), m, Layout{.extra = extra});
      backend().cross_entropy(
          {.logits = device, .target = target, .loss = loss, .largest = largest});
      EXPECT_EQ(largest, first);
    }
    Wide a(backend(), logits, Layout{.extra = extra}), b(backend(), others);
    std::vector<Divergence> divergences(first.size());
    backend().compare_logits({.reference = a, .logits = b, .divergences = divergences});
    for (const Divergence& d : divergences) EXPECT_EQ(d.same_top, 1);
  }
}

TEST_P(TransformerTest, DivergencesEqualTheReference) {
  constexpr std::int64_t kRows = 8;
  for (const std::int64_t extra : {3, 8}) {
    for (const std::int64_t vocabulary : {1, 7, 5003, 4096}) {
      const Matrix a = rounded(DType::kF32, random_matrix(kRows, vocabulary, 18, 10.0));
      Matrix b = rounded(DType::kF32, random_matrix(kRows, vocabulary, 19, 10.0));
      for (std::int64_t i = 0; i < kRows / 2; ++i)  // near each other, as a quantized model's are
        for (std::int64_t j = 0; j < vocabulary; ++j)
          b(i, j) = static_cast<double>(static_cast<float>(a(i, j) + 0.01 * b(i, j)));
      Wide reference(backend(), a, Layout{.extra = extra});
      Wide logits(backend(), b, Layout{.extra = extra});
      std::vector<Divergence> got(kRows);
      backend().compare_logits({.reference = reference, .logits = logits, .divergences = got});
      const std::vector<double> want = reference::divergences(a, b);
      const auto tops = reference::largest_columns(a), others = reference::largest_columns(b);
      for (std::size_t i = 0; i < kRows; ++i) {
        // e^x is a float's, of which some 1e-7 may be off.
        ASSERT_NEAR(got[i].nats, want[i], 2e-6 * (0.01 + want[i])) << vocabulary << ", row " << i;
        ASSERT_EQ(got[i].same_top, tops[i] == others[i] ? 1 : 0);
      }
      backend().compare_logits({.reference = logits, .logits = logits, .divergences = got});
      for (const Divergence& d : got) {
        EXPECT_EQ(d.nats, 0.0) << "of a distribution from itself";
        EXPECT_EQ(d.same_top, 1);
      }
    }
  }
}

TEST_P(TransformerTest, DivergencesOfWhatIsNotFiniteAreNot) {
  const Matrix finite = random_matrix(1, 300, 20);
  for (const double bad : {kNaN, kInfinity, -kInfinity}) {
    for (const std::int64_t column : {0, 299}) {
      Matrix m = finite;
      m(0, column) = bad;
      Wide a(backend(), m), b(backend(), finite);
      std::vector<Divergence> one_way(1), other_way(1);
      backend().compare_logits({.reference = a, .logits = b, .divergences = one_way});
      backend().compare_logits({.reference = b, .logits = a, .divergences = other_way});
      EXPECT_FALSE(std::isfinite(one_way[0].nats)) << bad;
      EXPECT_FALSE(std::isfinite(other_way[0].nats)) << bad;
    }
  }
  Wide a(backend(), finite), narrow(backend(), Matrix(1, 299)), none(backend(), Matrix(1, 0));
  std::vector<Divergence> one(1), two(2);
  EXPECT_THROW(backend().compare_logits({.reference = a, .logits = narrow, .divergences = one}),
               Error);
  EXPECT_THROW(backend().compare_logits({.reference = a, .logits = a, .divergences = two}), Error);
  EXPECT_THROW(backend().compare_logits({.reference = none, .logits = none, .divergences = one}),
               Error);
}

TEST_P(TransformerTest, CheckFiniteNamesTheSamplesWithNaNOrInfinity) {
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {37, 40}) {
      Matrix x = random_matrix(12, cols, 18);
      x(4, cols - 1) = kNaN;
      x(11, 0) = -kInfinity;
      x(0, 0) = 3e38;
      Wide device(backend(), x, layout);
      std::vector<std::uint8_t> finite(4, 7);
      backend().check_finite({.x = device, .rows_each = 3, .finite = finite});
      EXPECT_EQ(finite, (std::vector<std::uint8_t>{1, 0, 1, 0}));
    }
  }
}

TEST_P(TransformerTest, ResultsHaveTheSameBitsWithAnyNumberOfThreads) {
  const AttentionShape s{2, 300, 4, 2, 32, 200};
  const Matrix q = random_matrix(600, 128, 19);
  const Matrix k = random_matrix(600, 64, 20);
  const Matrix v = random_matrix(600, 64, 21);
  expect_same_bits_with_any_threads(
      [&](Backend& backend) { return attend(backend, s, q, k, v, 0.2); });
  const AttentionShape one_head{2, 300, 2, 1, 64, 200};
  for (const Layout& layout : layouts(backend())) {
    expect_same_bits_with_any_threads(
        [&](Backend& backend) { return attend(backend, one_head, q, k, v, 0.2, layout); });
  }
  const Matrix weight = random_matrix(1, 128, 22);
  expect_same_bits_with_any_threads([&](Backend& backend) {
    Wide x(backend, q);
    Wide device_weight(backend, weight);
    backend.rms_norm({.x = x, .weight = device_weight, .y = x, .epsilon = 1e-5f});
    backend.gated_product({.gate = x, .up = x, .y = x});
    backend.layer_norm(
        {.x = x, .weight = device_weight, .bias = device_weight, .y = x, .epsilon = 1e-5f});
    return download(backend, x);
  });
  const Matrix a = random_matrix(9, 9000, 23), b = random_matrix(9, 9000, 24);
  expect_same_bits_with_any_threads([&](Backend& backend) {
    Wide reference(backend, a), logits(backend, b);
    std::vector<Divergence> divergences(9);
    backend.compare_logits({.reference = reference, .logits = logits, .divergences = divergences});
    Matrix nats(1, 9);
    for (std::size_t i = 0; i < 9; ++i) nats.values[i] = divergences[i].nats;
    return nats;
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, TransformerTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
