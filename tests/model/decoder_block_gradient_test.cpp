// The backward pass of a whole block: against difference quotients of a plain forward pass in double, against torch's
// autograd, and with the same bits however it is run.
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>

#include <gmock/gmock.h>

#include "model/block/decoder_block.h"
#include "model/block/linear.h"
#include "model/causal_lm.h"
#include "tests/model/model_files.h"
#include "tests/model/reference_model.h"
#include "tests/reference/gradients.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using reference::Matrix;

std::vector<float> floats(const Matrix& m) { return {m.values.begin(), m.values.end()}; }

Matrix matrix_of(const json& m) {
  Matrix matrix(m.at("rows"), m.at("cols"));
  matrix.values = m.at("values").get<std::vector<double>>();
  return matrix;
}

Matrix download(const Tensor& tensor, Backend& backend) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.cols()));
  backend.download(tensor.f32(), std::as_writable_bytes(std::span(values)));
  Matrix m(tensor.rows(), tensor.cols());
  m.values.assign(values.begin(), values.end());
  return m;
}

// Near, relative to the largest element that is wanted.
void expect_near(const Matrix& got, const Matrix& want, const std::string& what) {
  ASSERT_EQ(got.rows, want.rows) << what;
  ASSERT_EQ(got.cols, want.cols) << what;
  double largest = 0.0;
  for (const double value : want.values) largest = std::max(largest, std::abs(value));
  ASSERT_GT(largest, 0.0) << what;
  for (std::size_t i = 0; i < want.values.size(); ++i) {
    ASSERT_NEAR(got.values[i], want.values[i], 1e-5 * largest) << what << ", element " << i;
  }
}

// What the backward pass of the squared error sum (y - target)² / n, n elements, gave.
struct Gradients {
  double loss = 0.0;
  std::vector<int> order;  // in which linears were handed out
  std::map<std::string, Matrix> linears;
  Matrix dx, output;
};

// A model of one block whose linears are as in the golden file.
class World {
 public:
  explicit World(const std::string& kind) {
    std::ifstream file(source_folder() / "tests/golden/gradients.json");
    golden_ = json::parse(file).at("blocks").at(kind);
    const json& config = golden_.at("config");
    Tensors tensors = formula_tensors(config, DType::kF32);
    for (const auto& [name, linear] : golden_.at("linears").items()) {
      const std::vector<float> w = floats(matrix_of(linear.at("w")));
      std::ranges::copy(w, tensors.at(prefix() + name + ".weight").as<float>().begin());
    }
    weights_ = reference::weights_of(tensors);
    write_model(directory_.path(), config, tensors);
    model_ = std::make_unique<CausalLM>(directory_.path());
  }

  const json& golden() const { return golden_; }
  const ModelConfig& config() const { return model_->config(); }
  std::string prefix() const { return golden_.at("prefix").get<std::string>(); }
  const reference::Weights& weights() const { return weights_; }

  Gradients run(Save save, int threads = 1,
                DecoderBlock::InputGradient input = DecoderBlock::InputGradient::kYes) const {
    const auto backend = make_backend("cpu", {.threads = threads});
    const auto block =
        make_decoder_block(config(), golden_.at("length").get<std::int64_t>(), *backend);
    const BlockWeights weights = block->load(model_->checkpoint(), 0, *backend);
    const Matrix x = matrix_of(golden_.at("x")), target = matrix_of(golden_.at("target"));
    const auto upload = [&](const Matrix& m) {
      HostTensor host(DType::kF32, {m.rows, m.cols});
      std::ranges::copy(floats(m), host.as<float>().begin());
      Tensor tensor = Tensor::upload(*backend, host.view(), DType::kF32);
      backend->sync();
      return tensor;
    };
    BlockState state{.residual = upload(x),
                     .input = {},
                     .sequences = golden_.at("sequences"),
                     .length = golden_.at("length")};
    SavedActivations saved = block->forward_saving(weights, state, save, *backend);
    EXPECT_EQ(saved.bytes(), save == Save::kAll ? block->saved_bytes(x.rows, DType::kF32)
                                                : 2 * x.values.size() * sizeof(float));

    Gradients result;
    result.output = download(state.residual, *backend);
    Tensor dy = std::move(state.residual);
    const auto n = static_cast<double>(x.values.size());
    const Tensor wanted = upload(target);
    result.loss = backend->squared_error({.y = std::as_const(dy).view(),
                                          .target = wanted.view(),
                                          .dy = dy.view(),
                                          .scale = static_cast<float>(2.0 / n)}) /
                  n;
    const Tensor dx = block->backward(
        weights, std::move(saved), std::move(dy),
        [&](int linear, const LinearGradient& of) {
          result.order.push_back(linear);
          EXPECT_EQ(of.length, state.length);
          result.linears[block->linears()[linear].name] =
              download(weight_gradient(of.dy.view(), of.x.view(), *backend), *backend);
        },
        input, *backend);
    if (!dx.empty()) result.dx = download(dx, *backend);

    // The plain forward pass has the same bits.
    BlockState plain{
        .residual = upload(x), .input = {}, .sequences = state.sequences, .length = state.length};
    block->forward(weights, plain, *backend);
    EXPECT_EQ(download(plain.residual, *backend).values, result.output.values);
    return result;
  }

 private:
  TemporaryFolder directory_;
  json golden_;
  reference::Weights weights_;
  std::unique_ptr<CausalLM> model_;
};

class BlockGradientTest : public testing::TestWithParam<const char*> {
 protected:
  World world_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Architectures, BlockGradientTest,
                         testing::Values("llama", "mistral", "llama-biases", "qwen2", "qwen3",
                                         "phi3", "olmo2", "granite", "gemma2", "gemma3", "opt",
                                         "opt-norm-last"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST_P(BlockGradientTest, EqualsTorchs) {
  const Gradients got = world_.run(Save::kAll);
  EXPECT_NEAR(got.loss, world_.golden().at("loss").get<double>(), 1e-6 * got.loss);
  expect_near(got.dx, matrix_of(world_.golden().at("d_x")), "dx");
  ASSERT_EQ(got.linears.size(), world_.golden().at("linears").size());
  for (const auto& [name, linear] : world_.golden().at("linears").items()) {
    expect_near(got.linears.at(name), matrix_of(linear.at("dw")), name);
  }
}

TEST_P(BlockGradientTest, IsTheDifferenceQuotient) {
  const Matrix x = matrix_of(world_.golden().at("x")),
               target = matrix_of(world_.golden().at("target"));
  reference::Weights weights = world_.weights();
  // [1, 1]: the loss.
  const auto loss = [&](const Matrix& input) {
    const Matrix y = reference::decoder_block(world_.config(), weights, world_.prefix(),
                                              world_.golden().at("length"), input);
    Matrix result(1, 1);
    for (std::size_t i = 0; i < y.values.size(); ++i) {
      const double difference = y.values[i] - target.values[i];
      result(0, 0) += difference * difference / static_cast<double>(y.values.size());
    }
    return result;
  };
  Matrix one(1, 1);
  one(0, 0) = 1.0;
  const Gradients got = world_.run(Save::kAll);
  expect_near(got.dx, reference::numeric_gradient(loss, x, one), "dx");
  for (const auto& [name, gradient] : got.linears) {
    Matrix& weight = weights.at(world_.prefix() + name + ".weight");
    const Matrix original = weight;
    const Matrix want = reference::numeric_gradient(
        [&](const Matrix& at) {
          weight = at;
          return loss(x);
        },
        original, one);
    weight = original;
    expect_near(gradient, want, name);
  }
}

TEST_P(BlockGradientTest, SameBitsWithAnyThreadsAndFromTheInputsAlone) {
  const Gradients want = world_.run(Save::kAll, 1);
  for (const int threads : {1, 2, 3}) {
    for (const Save save : {Save::kAll, Save::kInputs}) {
      const Gradients got = world_.run(save, threads);
      EXPECT_EQ(got.loss, want.loss);
      EXPECT_EQ(got.output.values, want.output.values);
      EXPECT_EQ(got.dx.values, want.dx.values);
      for (const auto& [name, gradient] : want.linears) {
        EXPECT_EQ(got.linears.at(name).values, gradient.values) << name;
      }
    }
  }
}

TEST_P(BlockGradientTest, HandsOutEachLinearOnceAndTheInputsGradientWhenAsked) {
  const Gradients with = world_.run(Save::kAll);
  std::vector<int> last_to_first(with.linears.size());
  std::iota(last_to_first.rbegin(), last_to_first.rend(), 0);
  EXPECT_EQ(with.order, last_to_first);
  const Gradients without = world_.run(Save::kAll, 1, DecoderBlock::InputGradient::kNo);
  EXPECT_TRUE(without.dx.values.empty());
  for (const auto& [name, gradient] : with.linears) {
    EXPECT_EQ(without.linears.at(name).values, gradient.values) << name;
  }
}

}  // namespace
}  // namespace roundhouse
