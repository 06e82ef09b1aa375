// Where a model's gradients begin: the mean cross-entropy of a sequence and its gradient at the end of the last block.
#include <cmath>

#include <gtest/gtest.h>

#include "model/causal_lm.h"
#include "tests/model/reference_model.h"
#include "tests/reference/gradients.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using reference::Matrix;

constexpr std::int64_t kTokens = 5, kVocabulary = 2500;
// Logits of 1024 columns at a time, which are the fewest, and of all.
constexpr std::size_t kRanges = 1, kWhole = CausalLM::kLogitBytes;

class LossGradientTest : public testing::TestWithParam<const char*> {
 protected:
  LossGradientTest() {
    const std::string name = GetParam();
    json config = name == "llama"     ? small_config()
                  : name == "granite" ? small_config_of("Granite")
                  : name == "gemma2"  ? small_config_of("Gemma2")
                                      : small_opt_config();
    config["hidden_size"] = 8;
    config["num_hidden_layers"] = 1;
    config["vocab_size"] = kVocabulary;
    config["torch_dtype"] = "float32";
    if (name.starts_with("opt")) {
      config["word_embed_proj_dim"] = 8;
    }
    if (name == "opt-norm-last") {
      config["word_embed_proj_dim"] = 4;
      config["do_layer_norm_before"] = false;
    }
    const Tensors tensors = formula_tensors(config, DType::kF32);
    write_model(directory_.path(), config, tensors);
    weights_ = reference::weights_of(tensors);
    model_ = std::make_unique<CausalLM>(directory_.path());
    ids_ = formula_tokens(name, kTokens, kVocabulary);
    ids_[2] = kVocabulary - 1;  // in the last range
    const auto values = formula_weight("residual.embed_tokens", residual_.values.size());
    residual_.values.assign(values.begin(), values.end());
  }

  struct Result {
    double loss;
    Matrix gradient;
  };
  Result compute(std::size_t logit_bytes, int threads = 1) const {
    const auto backend = make_backend("cpu", {.threads = threads});
    HostTensor host(DType::kF32, {residual_.rows, residual_.cols});
    std::ranges::copy(std::vector<float>(residual_.values.begin(), residual_.values.end()),
                      host.as<float>().begin());
    const Tensor residual = Tensor::upload(*backend, host.view(), DType::kF32);
    const CausalLM::Head head = model_->load_head(*backend);
    const CausalLM::LossGradient loss =
        model_->loss_gradient(head, residual.view(), ids_, *backend, logit_bytes);
    std::vector<float> values(residual_.values.size());
    backend->download(loss.residual.f32(), std::as_writable_bytes(std::span(values)));
    Result result{loss.loss, Matrix(residual_.rows, residual_.cols)};
    result.gradient.values.assign(values.begin(), values.end());
    return result;
  }

  TemporaryFolder directory_;
  reference::Weights weights_;
  std::unique_ptr<CausalLM> model_;
  std::vector<std::int32_t> ids_;
  Matrix residual_{kTokens, 8};
};

INSTANTIATE_TEST_SUITE_P(Architectures, LossGradientTest,
                         testing::Values("llama", "granite", "gemma2", "opt", "opt-norm-last"),
                         [](const auto& instance) {
                           std::string name = instance.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST_P(LossGradientTest, IsTheDifferenceQuotient) {
  const auto loss = [&](const Matrix& at) {
    Matrix result(1, 1);
    result(0, 0) = reference::mean_cross_entropy(model_->config(), weights_, at, ids_);
    return result;
  };
  Matrix one(1, 1);
  one(0, 0) = 1.0;
  const Matrix want = reference::numeric_gradient(loss, residual_, one);
  double largest = 0.0;
  for (const double value : want.values) largest = std::max(largest, std::abs(value));
  ASSERT_GT(largest, 0.0);
  for (const std::size_t bytes : {kRanges, kWhole}) {
    const Result got = compute(bytes);
    EXPECT_NEAR(got.loss, loss(residual_)(0, 0), 1e-6 * got.loss);
    for (std::size_t i = 0; i < want.values.size(); ++i) {
      ASSERT_NEAR(got.gradient.values[i], want.values[i], 1e-5 * largest) << "element " << i;
    }
    for (std::int64_t i = 0; i < residual_.cols; ++i) {
      EXPECT_EQ(got.gradient(kTokens - 1, i), 0.0) << "the last token predicts nothing";
    }
  }
}

TEST_P(LossGradientTest, SameBitsWithAnyThreads) {
  for (const std::size_t bytes : {kRanges, kWhole}) {
    const Result want = compute(bytes, 1);
    for (const int threads : {2, 3}) {
      const Result got = compute(bytes, threads);
      EXPECT_EQ(got.loss, want.loss);
      EXPECT_EQ(got.gradient.values, want.gradient.values);
    }
  }
}

TEST_P(LossGradientTest, TakesTwoTokensOfTheVocabulary) {
  const std::vector<std::int32_t> whole = ids_;
  ids_[1] = kVocabulary;
  EXPECT_THROW((void)compute(kWhole), Error);
  ids_ = {whole[0]};
  residual_ = Matrix(1, 8);
  EXPECT_THROW((void)compute(kWhole), Error);
}

}  // namespace
}  // namespace roundhouse
