#include "kernels/gradients.h"

#include <array>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "tests/kernels/backend_test.h"
#include "tests/reference/gradients.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using GradientsTest = BackendTest;
using reference::Matrix;
using reference::numeric_gradient;

// A few roundings of float32, relative to the largest element of the result.
constexpr double kFewRoundings = 3e-6;
const double kNaN = std::numeric_limits<double>::quiet_NaN();

Matrix sum(Matrix a, const Matrix& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
  return a;
}

// What torch's autograd said.
class Golden {
 public:
  explicit Golden(const char* name) {
    std::ifstream file(source_folder() / "tests/golden/gradients.json");
    entry_ = nlohmann::json::parse(file).at("kernels").at(name);
  }
  Matrix matrix(const char* name) const {
    const nlohmann::json& m = entry_.at(name);
    Matrix matrix(m.at("rows"), m.at("cols"));
    matrix.values = m.at("values").get<std::vector<double>>();
    return matrix;
  }
  template <class T>
  T value(const char* name) const {
    return entry_.at(name).get<T>();
  }

 private:
  nlohmann::json entry_;
};

Matrix rms_norm_backward(Backend& backend, const Matrix& x, const Matrix& weight, const Matrix& dy,
                         double epsilon, const Matrix* before = nullptr, const Layout& layout = {},
                         float offset = 0.0f) {
  Wide device_x(backend, x, layout), device_weight(backend, weight, layout),
      device_dy(backend, dy, layout);
  Wide dx(backend, before ? *before : constant_matrix(x.rows, x.cols, kNaN), layout);
  backend.rms_norm_backward({.x = device_x,
                             .weight = device_weight,
                             .dy = device_dy,
                             .dx = dx,
                             .epsilon = static_cast<float>(epsilon),
                             .accumulate = before != nullptr,
                             .offset = offset});
  return download(backend, dx);
}

Matrix layer_norm_backward(Backend& backend, const Matrix& x, const Matrix& weight,
                           const Matrix& dy, double epsilon, const Matrix* before = nullptr,
                           const Layout& layout = {}) {
  Wide device_x(backend, x, layout), device_weight(backend, weight, layout),
      device_dy(backend, dy, layout);
  Wide dx(backend, before ? *before : constant_matrix(x.rows, x.cols, kNaN), layout);
  backend.layer_norm_backward({.x = device_x,
                               .weight = device_weight,
                               .dy = device_dy,
                               .dx = dx,
                               .epsilon = static_cast<float>(epsilon),
                               .accumulate = before != nullptr});
  return download(backend, dx);
}

constexpr std::array<std::pair<std::int64_t, std::int64_t>, 5> kNormShapes{
    {{0, 8}, {1, 5}, {3, 16}, {12, 131}, {1, 1504}}};

TEST_P(GradientsTest, RmsNormBackwardIsTheDifferenceQuotient) {
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [rows, cols] : kNormShapes) {
      const Matrix x = rounded(layout.type, random_matrix(rows, cols, 1, 3.0));
      const Matrix weight = rounded(layout.type, random_matrix(1, cols, 2));
      const Matrix dy = rounded(layout.type, random_matrix(rows, cols, 3));
      const Matrix want = numeric_gradient(
          [&](const Matrix& at) { return reference::rms_norm(at, weight, 1e-5); }, x, dy);
      const double near = tolerance(layout.type, kFewRoundings);
      expect_near(rms_norm_backward(backend(), x, weight, dy, 1e-5, nullptr, layout), want, near,
                  "dx");
      const Matrix before = rounded(layout.type, random_matrix(rows, cols, 4));
      expect_near(rms_norm_backward(backend(), x, weight, dy, 1e-5, &before, layout),
                  sum(want, before), near, "accumulated");
      const Matrix want_offset = numeric_gradient(
          [&](const Matrix& at) { return reference::rms_norm(at, weight, 1e-5, 1.0); }, x, dy);
      expect_near(rms_norm_backward(backend(), x, weight, dy, 1e-5, nullptr, layout, 1.0f),
                  want_offset, near, "with an offset");
    }
  }
}

TEST_P(GradientsTest, LayerNormBackwardIsTheDifferenceQuotient) {
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [rows, cols] : kNormShapes) {
      Matrix x = random_matrix(rows, cols, 5, 3.0);
      for (double& value : x.values) value += 5.0;
      x = rounded(layout.type, x);
      const Matrix weight = rounded(layout.type, random_matrix(1, cols, 6));
      const Matrix dy = rounded(layout.type, random_matrix(rows, cols, 7));
      const Matrix want = numeric_gradient(
          [&](const Matrix& at) {
            return reference::layer_norm(at, weight, Matrix(1, weight.cols), 1e-2);
          },
          x, dy);
      // x - mean is a difference of float32 numbers around 5.
      const double near = tolerance(layout.type, 1e-5);
      expect_near(layer_norm_backward(backend(), x, weight, dy, 1e-2, nullptr, layout), want, near,
                  "dx");
      const Matrix before = rounded(layout.type, random_matrix(rows, cols, 8));
      expect_near(layer_norm_backward(backend(), x, weight, dy, 1e-2, &before, layout),
                  sum(want, before), near, "accumulated");
    }
  }
}

TEST_P(GradientsTest, NormsOfZerosAndInPlace) {
  const Matrix zeros(2, 20), weight = random_matrix(1, 20, 9), dy = random_matrix(2, 20, 10);
  EXPECT_EQ(rms_norm_backward(backend(), zeros, weight, dy, 0.0).values, zeros.values);
  EXPECT_EQ(layer_norm_backward(backend(), zeros, weight, dy, 0.0).values, zeros.values);

  const Matrix x = random_matrix(2, 20, 11);
  Wide device_x(backend(), x), device_weight(backend(), weight), device_dy(backend(), dy);
  backend().rms_norm_backward(
      {.x = device_x, .weight = device_weight, .dy = device_dy, .dx = device_dy, .epsilon = 1e-5f});
  EXPECT_EQ(download(backend(), device_dy).values,
            rms_norm_backward(backend(), x, weight, dy, 1e-5).values);
}

TEST_P(GradientsTest, RopeBackwardIsTheDifferenceQuotient) {
  constexpr std::int64_t kHeads = 3, kLength = 5;
  for (const std::int64_t half : {1, 8}) {
    const Matrix x = random_matrix(2 * kLength, kHeads * 2 * half, 12);
    const Matrix dy = random_matrix(x.rows, x.cols, 13);
    const Matrix cos = random_matrix(kLength + 1, half, 14),
                 sin = random_matrix(kLength + 1, half, 15);
    Wide device(backend(), dy), device_cos(backend(), cos), device_sin(backend(), sin);
    backend().rope({.x = device,
                    .cos = device_cos,
                    .sin = device_sin,
                    .heads = kHeads,
                    .head_dim = 2 * half,
                    .length = kLength,
                    .backward = true});
    expect_near(
        download(backend(), device),
        numeric_gradient(
            [&](const Matrix& at) { return reference::rope(at, cos, sin, kHeads, kLength); }, x,
            dy),
        kFewRoundings, "rope");
  }
}

struct AttentionShape {
  std::int64_t sequences, length, heads, kv_heads, head_dim, window;
  double score_cap = 0.0;
};

struct AttentionCase {
  AttentionShape shape;
  Matrix q, k, v, d_out;
  double scale;

  explicit AttentionCase(const AttentionShape& s, double size = 1.0, DType type = DType::kF32)
      : shape(s),
        q(rounded(type, random_matrix(s.sequences * s.length, s.heads * s.head_dim, 16, size))),
        k(rounded(type, random_matrix(s.sequences * s.length, s.kv_heads * s.head_dim, 17, size))),
        v(rounded(type, random_matrix(s.sequences * s.length, s.kv_heads * s.head_dim, 18))),
        d_out(rounded(type, random_matrix(s.sequences * s.length, s.heads * s.head_dim, 19))),
        scale(static_cast<double>(1.0f / std::sqrt(static_cast<float>(s.head_dim)))) {}
};

// Forward, then backward, on a backend.
reference::AttentionGradient attention_gradient(Backend& backend, const AttentionCase& c,
                                                const Layout& layout = {}) {
  const AttentionShape& s = c.shape;
  Wide q(backend, c.q, layout), k(backend, c.k, layout), v(backend, c.v, layout),
      d_out(backend, c.d_out, layout);
  Wide out(backend, constant_matrix(c.q.rows, c.q.cols, kNaN), layout);
  Wide sums(backend, constant_matrix(c.q.rows, s.heads, kNaN));
  backend.attention({.q = q,
                     .k = k,
                     .v = v,
                     .out = out,
                     .heads = s.heads,
                     .kv_heads = s.kv_heads,
                     .head_dim = s.head_dim,
                     .length = s.length,
                     .window = s.window,
                     .scale = static_cast<float>(c.scale),
                     .log_sum_exp = sums,
                     .score_cap = static_cast<float>(s.score_cap)});
  Wide dq(backend, constant_matrix(c.q.rows, c.q.cols, kNaN), layout);
  Wide dk(backend, constant_matrix(c.k.rows, c.k.cols, kNaN), layout);
  Wide dv(backend, constant_matrix(c.v.rows, c.v.cols, kNaN), layout);
  backend.attention_backward({.q = q,
                              .k = k,
                              .v = v,
                              .out = out,
                              .log_sum_exp = sums,
                              .d_out = d_out,
                              .dq = dq,
                              .dk = dk,
                              .dv = dv,
                              .heads = s.heads,
                              .kv_heads = s.kv_heads,
                              .head_dim = s.head_dim,
                              .length = s.length,
                              .window = s.window,
                              .scale = static_cast<float>(c.scale),
                              .score_cap = static_cast<float>(s.score_cap)});
  return {download(backend, dq), download(backend, dk), download(backend, dv)};
}

reference::AttentionGradient reference_gradient(const AttentionCase& c) {
  return reference::attention_backward(c.q, c.k, c.v, c.d_out, c.shape.heads, c.shape.kv_heads,
                                       c.shape.length, c.shape.window, c.scale, c.shape.score_cap);
}

TEST(AttentionReference, BackwardIsTheDifferenceQuotient) {
  for (const AttentionShape& s : {AttentionShape{1, 1, 1, 1, 4, 0},
                                  {2, 5, 4, 2, 3, 0},
                                  {1, 6, 2, 1, 4, 3},
                                  {1, 6, 2, 1, 4, 0, 0.7}}) {
    const AttentionCase c(s);
    const reference::AttentionGradient got = reference_gradient(c);
    const auto attend = [&](const Matrix& q, const Matrix& k, const Matrix& v) {
      return reference::attention(q, k, v, s.heads, s.kv_heads, s.length, s.window, c.scale,
                                  s.score_cap);
    };
    constexpr double kTolerance = 1e-8;
    const Matrix dv =
        numeric_gradient([&](const Matrix& at) { return attend(c.q, c.k, at); }, c.v, c.d_out);
    expect_near(got.dv, dv, kTolerance, "dv");
    if (s.length == 1) continue;  // a softmax of one score has no slope
    expect_near(
        got.dq,
        numeric_gradient([&](const Matrix& at) { return attend(at, c.k, c.v); }, c.q, c.d_out),
        kTolerance, "dq");
    expect_near(
        got.dk,
        numeric_gradient([&](const Matrix& at) { return attend(c.q, at, c.v); }, c.k, c.d_out),
        kTolerance, "dk");
  }
}

void expect_gradient_near_reference(Backend& backend, const AttentionShape& s) {
  for (const Layout& layout : layouts(backend)) {
    // out and, on a GPU, P and dS are rounded too, to BF16: errors of some 2^-9 of each of the terms of sums.
    const double near = layout.type == DType::kF32 ? 1e-5 : 1e-2;
    const AttentionCase c(s, 1.0, layout.type);
    const reference::AttentionGradient got = attention_gradient(backend, c, layout);
    const reference::AttentionGradient want = reference_gradient(c);
    const std::string what = "length " + std::to_string(s.length) + ", heads of " +
                             std::to_string(s.head_dim) + ", window " + std::to_string(s.window);
    expect_near(got.dq, want.dq, near, "dq, " + what);
    expect_near(got.dk, want.dk, near, "dk, " + what);
    expect_near(got.dv, want.dv, near, "dv, " + what);
  }
}

TEST_P(GradientsTest, AttentionBackwardEqualsTheReference) {
  // Grouped queries; blocks cut off; windows shorter than a block, across blocks, and longer than the text; the heads that
  // GPUs have special kernels for.
  constexpr std::array<AttentionShape, 10> kShapes{{{2, 5, 2, 1, 8, 0},
                                                    {2, 5, 2, 2, 8, 2},
                                                    {1, 130, 4, 2, 16, 0},
                                                    {1, 130, 2, 2, 5, 7},
                                                    {1, 400, 2, 1, 64, 0},
                                                    {1, 400, 1, 1, 16, 30},
                                                    {1, 700, 1, 1, 8, 300},
                                                    {3, 17, 6, 2, 128, 100},
                                                    {2, 150, 4, 2, 64, 70},
                                                    {1, 200, 2, 1, 128, 0}}};
  for (const AttentionShape& s : kShapes) expect_gradient_near_reference(backend(), s);
}

TEST_P(GradientsTest, AttentionBackwardOfHeadsOfAnySizeEqualsTheReference) {
  for (const std::int64_t head_dim : kHeadSizes) {
    expect_gradient_near_reference(backend(), {2, 37, 4, 2, head_dim, 0});
    expect_gradient_near_reference(backend(), {1, 100, 2, 1, head_dim, 40});
  }
}

TEST_P(GradientsTest, AttentionBackwardOfCappedScoresEqualsTheReference) {
  for (const std::int64_t head_dim : kHeadSizes) {
    expect_gradient_near_reference(backend(), {1, 37, 2, 1, head_dim, 20, 1.5});
  }
  expect_gradient_near_reference(backend(), {1, 100, 1, 1, 64, 40, 20.0});
}

TEST_P(GradientsTest, AttentionOfOneTokenHasNoSlopeButThatOfItsValue) {
  const AttentionCase c({1, 1, 1, 1, 4, 0});
  const reference::AttentionGradient got = attention_gradient(backend(), c);
  expect_near(got.dv, c.d_out, kFewRoundings, "dv");
  for (const double value : got.dq.values) EXPECT_NEAR(value, 0.0, 1e-6);
  for (const double value : got.dk.values) EXPECT_NEAR(value, 0.0, 1e-6);
}

TEST_P(GradientsTest, AttentionBackwardBearsScoresThatOverflowAPlainExponential) {
  const AttentionCase c({1, 150, 2, 1, 16, 0}, 20.0);  // scores reach 1600 and err by 1e-4
  const reference::AttentionGradient got = attention_gradient(backend(), c);
  const reference::AttentionGradient want = reference_gradient(c);
  expect_near(got.dq, want.dq, 2e-3, "dq");
  expect_near(got.dk, want.dk, 2e-3, "dk");
  expect_near(got.dv, want.dv, 2e-3, "dv");
}

TEST_P(GradientsTest, GatedProductBackwardIsTheDifferenceQuotient) {
  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {37, 40}) {
      for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
        const Matrix gate = rounded(layout.type, random_matrix(3, cols, 20, 4.0));
        const Matrix up = rounded(layout.type, random_matrix(3, cols, 21));
        const Matrix dy = rounded(layout.type, random_matrix(3, cols, 22));
        const auto of_gate = [&](const Matrix& at) {
          return reference::gated_product(at, up, function);
        };
        const auto of_up = [&](const Matrix& at) {
          return reference::gated_product(gate, at, function);
        };
        // The results take the place of two operands.
        Wide device_gate(backend(), gate, layout), device_up(backend(), up, layout),
            device_dy(backend(), dy, layout);
        backend().gated_product_backward({.gate = device_gate,
                                          .up = device_up,
                                          .dy = device_dy,
                                          .d_gate = device_gate,
                                          .d_up = device_up,
                                          .function = function});
        const double near = tolerance(layout.type, kFewRoundings);
        expect_near(download(backend(), device_gate), numeric_gradient(of_gate, gate, dy), near,
                    "d_gate");
        expect_near(download(backend(), device_up), numeric_gradient(of_up, up, dy), near, "d_up");
      }
    }
  }
}

TEST_P(GradientsTest, GatedProductBackwardOfLargeValues) {
  Matrix gate(1, 3);
  gate.values = {200.0, -200.0, 0.0};
  Wide device_gate(backend(), gate), ones(backend(), constant_matrix(1, 3, 1.0));
  Wide d_gate(backend(), Matrix(1, 3)), d_up(backend(), Matrix(1, 3));
  for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGeluTanh}) {
    backend().gated_product_backward({.gate = device_gate,
                                      .up = ones,
                                      .dy = ones,
                                      .d_gate = d_gate,
                                      .d_up = d_up,
                                      .function = function});
    const Matrix got = download(backend(), d_gate);
    EXPECT_EQ(got(0, 0), 1.0);
    EXPECT_NEAR(got(0, 1), 0.0, 1e-35);
    EXPECT_EQ(got(0, 2), 0.5);
  }
}

TEST_P(GradientsTest, ReluBackwardPassesWhatWasPositive) {
  Matrix y(1, 4), dy(1, 4);
  y.values = {2.0, 0.0, 0.0, 1e-30};
  dy.values = {3.0, 4.0, -5.0, -6.0};
  Wide device_y(backend(), y), device_dy(backend(), dy);
  backend().relu_backward({.y = device_y, .dy = device_dy, .dx = device_dy});
  EXPECT_EQ(download(backend(), device_dy).values, (std::vector<double>{3.0, 0.0, 0.0, -6.0}));
}

TEST_P(GradientsTest, SquaredErrorOfAHandWorkedCaseAndOfManyRows) {
  Matrix y(2, 2), target(2, 2);
  y.values = {1.0, 2.0, 3.0, 4.0};
  target.values = {1.0, 0.0, 6.0, 4.0};
  Wide device_y(backend(), y), device_target(backend(), target);
  EXPECT_EQ(backend().squared_error(
                {.y = device_y, .target = device_target, .dy = device_y, .scale = 0.5f}),
            13.0);
  EXPECT_EQ(download(backend(), device_y).values, (std::vector<double>{0.0, 1.0, -1.5, 0.0}));

  for (const Layout& layout : layouts(backend())) {
    for (const std::int64_t cols : {1031, 1024}) {
      const Matrix many = rounded(layout.type, random_matrix(100, cols, 23)), zero(100, cols);
      double want = 0.0;
      for (const double value : many.values) want += value * value;
      Wide device_many(backend(), many, layout), device_zero(backend(), zero, layout);
      EXPECT_NEAR(backend().squared_error(
                      {.y = device_many, .target = device_zero, .dy = device_zero, .scale = 1.0f}),
                  want, 1e-6 * want);
      EXPECT_EQ(download(backend(), device_zero).values, many.values);
    }
  }
}

TEST_P(GradientsTest, NormsEqualTorchs) {
  const Golden rms("rms_norm"), layer("layer_norm");
  expect_near(rms_norm_backward(backend(), rms.matrix("x"), rms.matrix("weight"), rms.matrix("dy"),
                                rms.value<double>("epsilon")),
              rms.matrix("d_x"), kFewRoundings, "rms_norm");
  expect_near(layer_norm_backward(backend(), layer.matrix("x"), layer.matrix("weight"),
                                  layer.matrix("dy"), layer.value<double>("epsilon")),
              layer.matrix("d_x"), kFewRoundings, "layer_norm");
}

TEST_P(GradientsTest, AttentionEqualsTorchs) {
  for (const char* name : {"attention", "attention_window", "attention_capped"}) {
    const Golden golden(name);
    const Matrix q = golden.matrix("q");
    const auto heads = golden.value<std::int64_t>("heads");
    const auto length = golden.value<std::int64_t>("length");
    AttentionCase c({q.rows / length, length, heads, golden.value<std::int64_t>("kv_heads"),
                     q.cols / heads, golden.value<std::int64_t>("window"),
                     golden.value<double>("score_cap")});
    c.q = q;
    c.k = golden.matrix("k");
    c.v = golden.matrix("v");
    c.d_out = golden.matrix("dy");
    const reference::AttentionGradient got = attention_gradient(backend(), c);
    expect_near(got.dq, golden.matrix("d_q"), 5e-6, name);
    expect_near(got.dk, golden.matrix("d_k"), 5e-6, name);
    expect_near(got.dv, golden.matrix("d_v"), 5e-6, name);
  }
}

TEST_P(GradientsTest, ElementwiseGradientsEqualTorchs) {
  for (const auto& [name, function] : {std::pair{"silu_gate", GateFunction::kSilu},
                                       std::pair{"gelu_gate", GateFunction::kGeluTanh}}) {
    const Golden golden(name);
    Wide gate(backend(), golden.matrix("gate")), up(backend(), golden.matrix("up"));
    Wide dy(backend(), golden.matrix("dy"));
    backend().gated_product_backward(
        {.gate = gate, .up = up, .dy = dy, .d_gate = gate, .d_up = up, .function = function});
    expect_near(download(backend(), gate), golden.matrix("d_gate"), kFewRoundings, name);
    expect_near(download(backend(), up), golden.matrix("d_up"), kFewRoundings, name);
  }

  const Golden relu("relu");
  Wide y(backend(), relu.matrix("y")), relu_dy(backend(), relu.matrix("dy"));
  backend().relu_backward({.y = y, .dy = relu_dy, .dx = y});
  expect_near(download(backend(), y), relu.matrix("d_x"), kFewRoundings, "relu");

  const Golden error("squared_error");
  const Matrix of = error.matrix("y");
  const auto n = static_cast<double>(of.values.size());
  Wide error_y(backend(), of), target(backend(), error.matrix("target"));
  const double squares = backend().squared_error(
      {.y = error_y, .target = target, .dy = error_y, .scale = static_cast<float>(2.0 / n)});
  EXPECT_NEAR(squares / n, error.value<double>("loss"), 1e-6 * squares / n);
  expect_near(download(backend(), error_y), error.matrix("d_y"), kFewRoundings,
              "mean squared error");
}

// Logits of a vocabulary whose columns come in ranges: the loss and its gradient of every row.
struct CrossEntropyResult {
  Matrix log_sum_exp, loss, d_logits;
};
CrossEntropyResult cross_entropy_backward(Backend& backend, const Matrix& logits,
                                          const std::vector<std::int64_t>& target, double scale,
                                          std::int64_t each, const Layout& layout,
                                          double cap = 0.0) {
  Wide device(backend, logits, Layout{.type = DType::kF32, .extra = layout.extra});
  Wide sums(backend, constant_matrix(logits.rows, 1, kNaN)), loss(backend, Matrix(logits.rows, 1));
  Wide d_logits(backend, constant_matrix(logits.rows, logits.cols, kNaN), layout);
  const Tensor targets = upload_index(target, backend);
  const auto for_each_range = [&](const auto& work) {
    for (std::int64_t first = 0; first < logits.cols; first += each) {
      work(first, std::min(first + each, logits.cols));
    }
  };
  for_each_range([&](std::int64_t first, std::int64_t end) {
    backend.log_sum_exp(
        {.x = device.view().col_range(first, end), .sums = sums, .accumulate = first > 0});
  });
  for_each_range([&](std::int64_t first, std::int64_t end) {
    backend.cross_entropy_backward({.logits = device.view().col_range(first, end),
                                    .first = first,
                                    .log_sum_exp = sums,
                                    .target = targets.view(),
                                    .scale = static_cast<float>(scale),
                                    .d_logits = d_logits.view().col_range(first, end),
                                    .loss = loss,
                                    .soft_cap = static_cast<float>(cap)});
  });
  return {download(backend, sums), download(backend, loss), download(backend, d_logits)};
}

TEST_P(GradientsTest, CrossEntropyBackwardIsTheDifferenceQuotient) {
  constexpr double kScale = 0.125;
  for (const Layout& layout : layouts(backend())) {
    for (const auto& [cols, each] : std::vector<std::pair<std::int64_t, std::int64_t>>{
             {1, 1}, {7, 3}, {40, 16}, {131, 64}, {131, 200}}) {
      const Matrix logits = random_matrix(6, cols, 30, 5.0);
      std::vector<std::int64_t> target{0, cols - 1, -1, cols / 2, cols / 3, cols / 4};
      const std::vector<std::int32_t> target32(target.begin(), target.end());
      // Of the losses' sum.
      const auto loss = [&](const Matrix& at) {
        Matrix sum(1, 1);
        for (const double row : reference::cross_entropy(at, target32)) sum(0, 0) += row;
        return sum;
      };
      Matrix scale(1, 1);
      scale(0, 0) = kScale;
      const CrossEntropyResult got =
          cross_entropy_backward(backend(), logits, target, kScale, each, layout);
      if (cols > 1) {
        expect_near(got.d_logits, reference::numeric_gradient(loss, logits, scale),
                    tolerance(layout.type, kFewRoundings), "d_logits");
      }
      if (cols > 1) {  // of what is capped to these logits
        constexpr double kCap = 4.0;
        const Matrix capped = reference::soft_cap(logits, kCap);
        const Matrix slope = reference::numeric_gradient(
            [&](const Matrix& at) { return loss(reference::soft_cap(at, kCap)); }, logits, scale);
        expect_near(
            cross_entropy_backward(backend(), capped, target, kScale, each, layout, kCap).d_logits,
            slope, tolerance(layout.type, kFewRoundings), "d_logits of capped ones");
      }
      const std::vector<double> want = reference::cross_entropy(logits, target32);
      for (std::size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got.loss.values[i], want[i], 3e-6 * (1.0 + want[i])) << cols << ", row " << i;
      }
      for (std::int64_t col = 0; col < cols; ++col) {
        ASSERT_EQ(got.d_logits(2, col), 0.0) << "not scored";
      }
    }
  }
}

// Gradients may take the logits' place, and large logits do not overflow.
TEST_P(GradientsTest, CrossEntropyBackwardInPlaceAndOfLargeLogits) {
  Matrix logits = random_matrix(3, 24, 31);
  for (double& value : logits.values) value *= 3e4;
  const std::vector<std::int64_t> target{23, 0, 8};
  const CrossEntropyResult want = cross_entropy_backward(backend(), logits, target, 1.0, 24, {});
  Wide device(backend(), logits, Layout{.extra = 8});
  Wide sums(backend(), want.log_sum_exp), loss(backend(), Matrix(3, 1));
  const Tensor targets = upload_index(target, backend());
  backend().cross_entropy_backward({.logits = device,
                                    .first = 0,
                                    .log_sum_exp = sums,
                                    .target = targets.view(),
                                    .scale = 1.0f,
                                    .d_logits = device,
                                    .loss = loss});
  EXPECT_EQ(download(backend(), device).values, want.d_logits.values);
  EXPECT_EQ(download(backend(), loss).values, want.loss.values);
  for (const double value : want.d_logits.values) EXPECT_LE(std::abs(value), 1.0);
}

TEST_P(GradientsTest, AddGradientSumsAndSquares) {
  for (const std::int64_t extra : {3, 8}) {
    for (const std::int64_t cols : {5, 128}) {
      const Layout layout{.extra = extra};
      const Matrix g = random_matrix(70, cols, 32), before = random_matrix(70, cols, 33);
      Wide gradient(backend(), g, layout), total(backend(), before, layout),
          squares(backend(), before, layout);
      backend().add_gradient({.gradient = gradient, .sum = total, .squares = {}});
      backend().add_gradient({.gradient = gradient, .sum = {}, .squares = squares});
      Wide both_sum(backend(), before, layout), both_squares(backend(), before, layout);
      backend().add_gradient({.gradient = gradient, .sum = both_sum, .squares = both_squares});
      Matrix squared = g;
      for (double& value : squared.values) value *= value;
      expect_near(download(backend(), total), sum(before, g), 1e-7, "sum");
      expect_near(download(backend(), squares), sum(before, squared), 1e-7, "squares");
      EXPECT_EQ(download(backend(), both_sum).values, download(backend(), total).values);
      EXPECT_EQ(download(backend(), both_squares).values, download(backend(), squares).values);
    }
  }
}

TEST_P(GradientsTest, SameBitsWithAnyNumberOfThreads) {
  const AttentionCase c({2, 150, 4, 2, 64, 0});
  const Matrix x = random_matrix(200, 700, 24), dy = random_matrix(200, 700, 25);
  const Matrix weight = random_matrix(1, 700, 26);
  for (const Layout& layout : layouts(backend())) {
    expect_same_bits_with_any_threads([&](Backend& b) {
      const reference::AttentionGradient g = attention_gradient(b, c, layout);
      Matrix all(1, 0);
      for (const Matrix* m : {&g.dq, &g.dk, &g.dv}) {
        all.values.insert(all.values.end(), m->values.begin(), m->values.end());
      }
      return all;
    });
  }
  expect_same_bits_with_any_threads(
      [&](Backend& b) { return rms_norm_backward(b, x, weight, dy, 1e-5); });
  expect_same_bits_with_any_threads(
      [&](Backend& b) { return layer_norm_backward(b, x, weight, dy, 1e-5); });
  expect_same_bits_with_any_threads([&](Backend& b) {
    Wide y(b, x), target(b, dy);
    Matrix loss(1, 1);
    loss(0, 0) = b.squared_error({.y = y, .target = target, .dy = y, .scale = 1.0f});
    return loss;
  });
  const std::vector<std::int64_t> tokens(200, 11);
  for (const Layout& layout : layouts(backend())) {
    expect_same_bits_with_any_threads([&](Backend& b) {
      const CrossEntropyResult r = cross_entropy_backward(b, x, tokens, 0.5, 256, layout);
      Matrix all = r.d_logits;
      all.values.insert(all.values.end(), r.loss.values.begin(), r.loss.values.end());
      return all;
    });
  }
  expect_same_bits_with_any_threads([&](Backend& b) {
    Wide gradient(b, x), squares(b, dy);
    b.add_gradient({.gradient = gradient, .sum = {}, .squares = squares});
    return download(b, squares);
  });
}

TEST_P(GradientsTest, ShapesThatDoNotFitAreErrors) {
  Wide a(backend(), Matrix(2, 4)), b(backend(), Matrix(2, 5)), weight(backend(), Matrix(1, 4));
  EXPECT_THROW(
      backend().rms_norm_backward({.x = a, .weight = weight, .dy = b, .dx = a, .epsilon = 0.0f}),
      Error);
  EXPECT_THROW(
      backend().layer_norm_backward({.x = a, .weight = b, .dy = a, .dx = a, .epsilon = 0.0f}),
      Error);
  EXPECT_THROW(backend().relu_backward({.y = a, .dy = b, .dx = a}), Error);
  EXPECT_THROW(
      backend().gated_product_backward({.gate = a, .up = a, .dy = a, .d_gate = a, .d_up = b}),
      Error);
  EXPECT_THROW((void)backend().squared_error({.y = a, .target = b, .dy = a, .scale = 1.0f}), Error);
  EXPECT_THROW(backend().log_sum_exp({.x = a, .sums = b}), Error);
  EXPECT_THROW(backend().add_gradient({.gradient = a, .sum = b, .squares = {}}), Error);
  Wide column(backend(), Matrix(2, 1));
  const Tensor one = upload_index(std::vector<std::int64_t>{0}, backend());
  EXPECT_THROW(backend().cross_entropy_backward({.logits = a,
                                                 .first = 0,
                                                 .log_sum_exp = column,
                                                 .target = one.view(),
                                                 .scale = 1.0f,
                                                 .d_logits = a,
                                                 .loss = column}),
               Error)
      << "a target each";
}

INSTANTIATE_TEST_SUITE_P(Backends, GradientsTest, testing::ValuesIn(built_backends()),
                         backend_name);

}  // namespace
}  // namespace roundhouse
