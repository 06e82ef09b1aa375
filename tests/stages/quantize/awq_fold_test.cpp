// Where AWQ's scales go, by architecture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "comm/launcher.h"
#include "stages/quantize/awq/fold.h"
#include "tests/stages/awq_models.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::ElementsAre;

constexpr std::int64_t kLength = 24;

// |a - b| / |b| over all shards.
double distance(const ShardBytes& a, const ShardBytes& b) {
  double error = 0, norm = 0;
  for (const auto& [shard, bytes] : a) {
    const auto* mine = reinterpret_cast<const float*>(bytes.data());
    const auto* theirs = reinterpret_cast<const float*>(b.at(shard).data());
    for (std::size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
      error += std::pow(static_cast<double>(mine[i]) - static_cast<double>(theirs[i]), 2);
      norm += std::pow(static_cast<double>(theirs[i]), 2);
    }
  }
  return std::sqrt(error / norm);
}

std::vector<std::string> names_of(const DenseTensors& tensors) {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors) names.push_back(name);
  return names;
}

class AwqFoldTest : public testing::Test {
 protected:
  // Scales as extreme as a search could choose, folded and nothing rounded: the block computes what it did before.
  std::vector<std::string> expect_unchanged(QuantizeWorld& world) {
    world.forward();
    const ShardBytes before = world.residual();
    world.restart();
    Random random(5);
    std::vector<ChosenScales> chosen;
    for (const ScaleSet& set : world.decoder().scale_sets()) {
      ChosenScales& scales = chosen.emplace_back();
      const std::int64_t cols = world.decoder().shared_inputs()[set.group].cols;
      for (std::int64_t k = 0; k < cols; ++k) {
        scales.s.push_back(static_cast<float>(std::exp(2 * random.normal())));
      }
    }
    const Folding folding = fold(world.model().checkpoint(), world.decoder(), 0, chosen);
    for (const ChosenScales& scales : chosen) {
      EXPECT_FALSE(scales.record.contains("unscaled_channels"));
    }
    for (std::size_t i = 0; i < world.decoder().linears().size(); ++i) {
      const Tensor columns = upload_row(folding.column_factors[i], world.backend());
      const Tensor rows = upload_row(folding.row_divisors[i], world.backend());
      world.backend().fold_scales({.w = world.weights().linears[i].view(),
                                   .column_factors = columns.view(),
                                   .row_divisors = rows.view()});
    }
    replace(world.weights(), folding.replaced, world.decoder(), world.backend());
    world.forward();
    // Float32 throughout. The float16 norms alone, were they not allowed for, would leave 2e-4.
    EXPECT_LT(distance(world.residual(), before), 3e-6);
    return names_of(folding.replaced);
  }

  TemporaryFolder folder_;
  std::unique_ptr<Communicator> team_ = make_local_communicator();
};

TEST_F(AwqFoldTest, ChangesNothingInLlama) {
  QuantizeWorld world(*team_, 1, 2, {}, kLength, ungrouped_model(folder_));
  EXPECT_EQ(world.decoder().scale_sets().size(), 4u);
  EXPECT_THAT(expect_unchanged(world),
              ElementsAre("input_layernorm.weight", "post_attention_layernorm.weight"));
}

TEST_F(AwqFoldTest, LeavesOutTheAttentionOutputOfGroupedQueries) {
  QuantizeWorld world(*team_, 1, 2, {}, kLength);
  EXPECT_EQ(world.decoder().scale_sets().size(), 3u);
  expect_unchanged(world);
}

TEST_F(AwqFoldTest, ChangesNothingInOptWhoseBiasesAreDividedToo) {
  QuantizeWorld world(*team_, 1, 2, {}, kLength, opt_model(folder_, true));
  EXPECT_EQ(world.decoder().scale_sets().size(), 4u);
  EXPECT_THAT(expect_unchanged(world),
              ElementsAre("fc1.bias", "final_layer_norm.bias", "final_layer_norm.weight",
                          "self_attn.v_proj.bias", "self_attn_layer_norm.bias",
                          "self_attn_layer_norm.weight"));
}

TEST_F(AwqFoldTest, LeavesOutWhatReadsTheResidualItself) {
  QuantizeWorld world(*team_, 1, 2, {}, kLength, opt_model(folder_, false));
  EXPECT_EQ(world.decoder().scale_sets().size(), 2u);
  EXPECT_THAT(expect_unchanged(world), ElementsAre("fc1.bias", "self_attn.v_proj.bias"));
}

TEST_F(AwqFoldTest, ChangesNothingInPhi3WhoseValuesAndUpAreTheLastRows) {
  QuantizeWorld world(*team_, 1, 2, {}, kLength, model_of(folder_, "Phi3", 4));
  EXPECT_EQ(world.decoder().scale_sets().size(), 4u);
  EXPECT_THAT(expect_unchanged(world),
              ElementsAre("input_layernorm.weight", "post_attention_layernorm.weight"));
}

TEST_F(AwqFoldTest, ChangesNothingInQwen2AndGraniteWhoseBiasesAreDividedToo) {
  QuantizeWorld qwen(*team_, 1, 2, {}, kLength, model_of(folder_, "Qwen2", 4));
  EXPECT_THAT(expect_unchanged(qwen),
              ElementsAre("input_layernorm.weight", "post_attention_layernorm.weight",
                          "self_attn.v_proj.bias"));
  QuantizeWorld granite(*team_, 1, 2, {}, kLength, model_of(folder_, "Granite", 2));
  EXPECT_EQ(granite.decoder().scale_sets().size(), 3u);
  EXPECT_THAT(expect_unchanged(granite), ElementsAre("input_layernorm.weight", "mlp.up_proj.bias",
                                                     "post_attention_layernorm.weight"));
}

TEST_F(AwqFoldTest, ChangesNothingInQwen3AndOlmo2WhoseOtherNormsStay) {
  QuantizeWorld qwen(*team_, 1, 2, {}, kLength, model_of(folder_, "Qwen3", 4));
  EXPECT_THAT(expect_unchanged(qwen),
              ElementsAre("input_layernorm.weight", "post_attention_layernorm.weight"));
  QuantizeWorld olmo(*team_, 1, 2, {}, kLength, model_of(folder_, "Olmo2", 4));
  EXPECT_EQ(olmo.decoder().scale_sets().size(), 2u) << "linears that read the residual itself";
  EXPECT_THAT(expect_unchanged(olmo), ElementsAre());
}

TEST_F(AwqFoldTest, ChangesNothingInGemmaWhoseNormsMultiplyWithOneMoreThanTheirWeights) {
  for (const char* name : {"Gemma2", "Gemma3"}) {
    QuantizeWorld gemma(*team_, 1, 2, {}, kLength, model_of(folder_, name, 4));
    EXPECT_EQ(gemma.decoder().scale_sets().size(), 4u);
    EXPECT_THAT(expect_unchanged(gemma),
                ElementsAre("input_layernorm.weight", "pre_feedforward_layernorm.weight"));
  }
}

// Of weights w that multiply as 1 + w: what is not scaled keeps its bits, and the columns get the very inverse of what the
// checkpoint's type makes of the rest.
TEST_F(AwqFoldTest, NormsWithAnOffsetAreDividedAsAWhole) {
  QuantizeWorld world(*team_, 1, 1, {}, kLength, model_of(folder_, "Gemma3", 2, DType::kBF16));
  std::vector<ChosenScales> chosen;
  for (const ScaleSet& set : world.decoder().scale_sets()) {
    const std::int64_t cols = world.decoder().shared_inputs()[set.group].cols;
    chosen.push_back({std::vector<float>(static_cast<std::size_t>(cols), 3.0f), json::object()});
  }
  chosen[0].s[0] = 1.0f;
  chosen[0].s[1] = 1e9f;  // 1 + w would become 0
  const Folding folding = fold(world.model().checkpoint(), world.decoder(), 0, chosen);
  const std::vector<float> norm = download_f32(world.weights().norms[0], world.backend());
  const auto stored = folding.replaced.at("input_layernorm.weight").as<std::uint16_t>();
  EXPECT_EQ(bfloat16_to_float(stored[0]), norm[0]);
  EXPECT_EQ(bfloat16_to_float(stored[1]), norm[1]);
  EXPECT_EQ(folding.column_factors[0][1], 1.0f);
  EXPECT_EQ(chosen[0].record.at("unscaled_channels"), 1);
  for (std::size_t k = 2; k < norm.size(); ++k) {
    const float weight = bfloat16_to_float(stored[k]);
    EXPECT_EQ(weight, rounded_to(DType::kBF16, (1.0f + norm[k]) / 3.0f - 1.0f));
    EXPECT_EQ(folding.column_factors[0][k], (1.0f + norm[k]) / (1.0f + weight));
  }
}

TEST_F(AwqFoldTest, AChannelThatTheNormCannotHoldIsNotScaled) {
  QuantizeWorld world(*team_, 1, 1, {}, kLength);
  std::vector<ChosenScales> chosen;
  for (const ScaleSet& set : world.decoder().scale_sets()) {
    const std::int64_t cols = world.decoder().shared_inputs()[set.group].cols;
    chosen.push_back({std::vector<float>(static_cast<std::size_t>(cols), 2.0f), json::object()});
  }
  chosen[0].s[0] = 1e-6f;  // a norm of about 1 would become 1e6: too large for float16
  chosen[0].s[1] = 1e9f;   // or 0
  const Folding folding = fold(world.model().checkpoint(), world.decoder(), 0, chosen);
  EXPECT_EQ(chosen[0].record.at("unscaled_channels"), 2);
  EXPECT_EQ(folding.column_factors[0][0], 1.0f);
  EXPECT_EQ(folding.column_factors[0][1], 1.0f);
  EXPECT_EQ(folding.column_factors[0][2], 2.0f);
  const std::vector<float> norm = download_f32(world.weights().norms[0], world.backend());
  const auto stored = folding.replaced.at("input_layernorm.weight").as<std::uint16_t>();
  EXPECT_EQ(half_to_float(stored[0]), norm[0]);
  EXPECT_EQ(half_to_float(stored[1]), norm[1]);
  EXPECT_EQ(half_to_float(stored[2]), norm[2] / 2);
}

// The quantized block as evaluation and export see it: closer to the original than plain rounding, or something was folded into
// the wrong place.
TEST_F(AwqFoldTest, AQuantizedBlockIsNearerToTheOriginalThanPlainRounding) {
  for (const std::filesystem::path& model :
       {QuantizeWorld::bundled_model(), opt_model(folder_, true), opt_model(folder_, false),
        model_of(folder_, "Phi3", 4), model_of(folder_, "Qwen3", 2)}) {
    const auto output = [&](const json& recipe) {
      QuantizeWorld world(*team_, 2, 2, {}, kLength, model);
      const QuantizedBlock block = world.quantize(recipe);
      for (std::size_t i = 0; i < block.linears.size(); ++i) {
        world.weights().linears[i] = dequantize(block.linears[i], world.backend());
      }
      replace(world.weights(), block.replaced, world.decoder(), world.backend());
      world.restart();
      world.forward();
      return world.residual();
    };
    QuantizeWorld original(*team_, 2, 2, {}, kLength, model);
    original.forward();
    const json awq = {{"method", "awq"}, {"bits", 3}, {"group_size", 32}};
    const json rtn = {{"method", "rtn"}, {"bits", 3}, {"group_size", 32}, {"grid", "A-awq"}};
    EXPECT_LT(distance(output(awq), original.residual()),
              0.95 * distance(output(rtn), original.residual()))
        << model;
  }
}

}  // namespace
}  // namespace roundhouse
