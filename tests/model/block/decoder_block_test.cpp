#include "model/block/decoder_block.h"

#include <algorithm>
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/causal_lm.h"
#include "tests/model/model_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::int64_t kHidden = 32;

std::vector<float> download(const Tensor& tensor, Backend& backend) {
  std::vector<float> values(static_cast<std::size_t>(tensor.rows() * tensor.cols()));
  backend.download(tensor.view().data, std::as_writable_bytes(std::span(values)));
  return values;
}

// The contract of a block, on the CPU: of each architecture, Mistral with a window, OPT with norms
// first and last.
class DecoderBlockTest : public testing::TestWithParam<const char*> {
 protected:
  bool is_opt() const { return std::string_view(GetParam()).starts_with("Opt"); }
  bool has_window() const { return std::string_view(GetParam()) == "Mistral"; }

  DecoderBlockTest() {
    const std::string name = GetParam();
    json config = is_opt()                          ? small_opt_config()
                  : name == "Llama" || has_window() ? small_config()
                                                    : small_config_of(name);
    if (has_window()) {
      config.update({{"architectures", {"MistralForCausalLM"}},
                     {"model_type", "mistral"},
                     {"sliding_window", kWindow}});
    }
    if (std::string_view(GetParam()) == "OptNormLast") {
      config.update({{"do_layer_norm_before", false}, {"word_embed_proj_dim", 16}});
    }
    write_model(directory_.path(), config, formula_tensors(config, DType::kF16));
    model_ = std::make_unique<CausalLM>(directory_.path());
    block_ = make_decoder_block(model_->config(), kLength, *backend_);
    weights_ = block_->load(model_->checkpoint(), 1, *backend_);
  }

  BlockState start(const std::vector<std::int32_t>& ids, std::int64_t sequences) {
    BlockState state;
    state.sequences = sequences;
    state.length = static_cast<std::int64_t>(ids.size()) / sequences;
    state.residual = model_->embed(ids, state.length, *backend_);
    return state;
  }
  std::vector<float> forward(const std::vector<std::int32_t>& ids, std::int64_t sequences) {
    BlockState state = start(ids, sequences);
    block_->forward(weights_, state, *backend_);
    return download(state.residual, *backend_);
  }

  static constexpr std::int64_t kWindow = 4;
  static constexpr std::int64_t kLength = 12;
  TemporaryFolder directory_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {});
  std::unique_ptr<CausalLM> model_;
  std::unique_ptr<DecoderBlock> block_;
  BlockWeights weights_;
};

INSTANTIATE_TEST_SUITE_P(Architectures, DecoderBlockTest,
                         testing::Values("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Olmo2",
                                         "Granite", "Gemma2", "Gemma3", "Opt", "OptNormLast"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST_P(DecoderBlockTest, DescribesItsLinears) {
  std::vector<std::string> names;
  for (const LinearSpec& linear : block_->linears()) names.push_back(linear.name);
  if (is_opt()) {
    EXPECT_THAT(names, ElementsAre("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                   "self_attn.out_proj", "fc1", "fc2"));
    EXPECT_EQ(block_->prefix(7), "model.decoder.layers.7");
  } else if (std::string_view(GetParam()) == "Phi3") {
    EXPECT_THAT(names, ElementsAre("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj",
                                   "mlp.down_proj"));
    EXPECT_THAT(block_->score_linears(), ElementsAre(0));
    ASSERT_EQ(block_->scale_sets().size(), 4u);
    EXPECT_EQ(block_->scale_sets()[1].linear, 0) << "values are the last rows";
    EXPECT_EQ(block_->scale_sets()[3].linear, 2) << "up are the last rows";
  } else {
    EXPECT_THAT(names,
                ElementsAre("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"));
    EXPECT_EQ(block_->prefix(7), "model.layers.7");
  }
  EXPECT_EQ(block_->hidden_size(), kHidden);
  ASSERT_EQ(block_->shared_inputs().size(), 4u);
  for (const SharedInput& group : block_->shared_inputs()) {
    for (const int linear : group.linears) EXPECT_EQ(block_->linears()[linear].cols, group.cols);
  }
  for (std::size_t i = 0; i < weights_.linears.size(); ++i) {
    EXPECT_EQ(weights_.linears[i].rows(), block_->linears()[i].rows);
    EXPECT_EQ(weights_.linears[i].cols(), block_->linears()[i].cols);
    const bool biased = is_opt() || std::string_view(GetParam()) == "Granite" ||
                        (std::string_view(GetParam()) == "Qwen2" && i < 3);
    EXPECT_EQ(weights_.biases[i].empty(), !biased);
    EXPECT_EQ(block_->linears()[i].biased, biased);
  }
}

TEST_P(DecoderBlockTest, StepsAreTheForwardPass) {
  const std::vector<std::int32_t> ids = formula_tokens("steps", 2 * kLength, 40);
  const std::vector<float> expected = forward(ids, 2);
  BlockState state = start(ids, 2);
  for (int group = 0; group < 4; ++group) {
    const SharedInput& spec = block_->shared_inputs()[group];
    block_->prepare(group, weights_, state, *backend_);
    EXPECT_EQ(state.input.rows(), 2 * kLength);
    EXPECT_EQ(state.input.cols(), spec.cols);
    block_->apply(group, weights_, state, *backend_);
    const bool next_needs_input =
        group < 3 && !block_->shared_inputs()[static_cast<std::size_t>(group) + 1].from_residual;
    EXPECT_EQ(state.input.empty(), !next_needs_input) << "what is used up is freed";
  }
  EXPECT_EQ(download(state.residual, *backend_), expected);
}

// What the header says must be kept between two groups is enough to go on from.
TEST_P(DecoderBlockTest, GoesOnFromResidualAndInputAlone) {
  const std::vector<std::int32_t> ids = formula_tokens("stop", 2 * kLength, 40);
  const std::vector<float> expected = forward(ids, 2);
  for (int stop = 0; stop <= 3; ++stop) {
    BlockState state = start(ids, 2);
    for (int group = 0; group < stop; ++group) {
      block_->prepare(group, weights_, state, *backend_);
      block_->apply(group, weights_, state, *backend_);
    }
    BlockState resumed;
    resumed.sequences = state.sequences;
    resumed.length = state.length;
    const auto copy_of = [&](const Tensor& from) {
      Tensor to(*backend_, from.type(), from.rows(), from.cols());
      backend_->copy(from.view(), to.view());
      return to;
    };
    resumed.residual = copy_of(state.residual);
    if (!block_->shared_inputs()[stop].from_residual) resumed.input = copy_of(state.input);
    for (int group = stop; group < 4; ++group) {
      block_->prepare(group, weights_, resumed, *backend_);
      block_->apply(group, weights_, resumed, *backend_);
    }
    EXPECT_EQ(download(resumed.residual, *backend_), expected) << "stopped before group " << stop;
  }
}

TEST_P(DecoderBlockTest, GroupWithoutItsInputIsAnError) {
  BlockState state = start(formula_tokens("error", kLength, 40), 1);
  EXPECT_THROW(block_->prepare(1, weights_, state, *backend_), Error);
  EXPECT_THROW(block_->prepare(4, weights_, state, *backend_), Error);
  EXPECT_THROW(block_->prepare(-1, weights_, state, *backend_), Error);
  BlockState too_long = start(formula_tokens("error", kLength + 1, 40), 1);
  block_->prepare(0, weights_, too_long, *backend_);
  EXPECT_THROW(block_->apply(0, weights_, too_long, *backend_), Error);
}

TEST_P(DecoderBlockTest, SequencesDoNotSeeEachOther) {
  const std::vector<std::int32_t> ids = formula_tokens("sequences", 3 * kLength, 40);
  const std::vector<float> together = forward(ids, 3);
  for (int s = 0; s < 3; ++s) {
    const std::vector<std::int32_t> one(ids.begin() + s * kLength, ids.begin() + (s + 1) * kLength);
    const std::vector<float> alone = forward(one, 1);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      // Not necessarily the same bits: a matrix product may add in another order for another number
      // of rows.
      ASSERT_NEAR(together[static_cast<std::size_t>(s * kLength * kHidden) + i], alone[i], 1e-5)
          << "sequence " << s;
    }
  }
}

// Which rows of the output change when one token is replaced: those that may look at it.
TEST_P(DecoderBlockTest, TokensSeeEarlierTokensWithinTheWindow) {
  const std::vector<std::int32_t> ids = formula_tokens("causal", kLength, 40);
  const std::vector<float> before = forward(ids, 1);
  for (std::int64_t changed = 0; changed < kLength; ++changed) {
    std::vector<std::int32_t> other = ids;
    other[changed] = (other[changed] + 1) % 40;
    const std::vector<float> after = forward(other, 1);
    for (std::int64_t row = 0; row < kLength; ++row) {
      const bool sees = row >= changed && (!has_window() || changed > row - kWindow);
      const auto at = [&](const std::vector<float>& values) {
        return values.begin() + row * kHidden;
      };
      EXPECT_EQ(!std::equal(at(before), at(before) + kHidden, at(after)), sees)
          << "token " << changed << ", row " << row;
    }
  }
}

TEST_P(DecoderBlockTest, NoSequencesGiveNoRows) {
  BlockState state;
  state.length = kLength;
  state.residual = model_->embed({}, kLength, *backend_);
  block_->forward(weights_, state, *backend_);
  EXPECT_EQ(state.residual.rows(), 0);
}

}  // namespace
}  // namespace roundhouse
