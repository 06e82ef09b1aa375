// GPTQ on a block of the bundled model.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/launcher.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;

const json kGptq = {{"method", "gptq"}, {"bits", 3}, {"group_size", 100}};

json with(json recipe, const char* key, const json& value) {
  recipe[key] = value;
  return recipe;
}

class QuantizeBlockTest : public testing::Test {
 protected:
  std::unique_ptr<Communicator> team_ = make_local_communicator();
};

std::vector<json> gptq_forms() {
  return {kGptq,
          with(kGptq, "true_sequential", false),
          with(kGptq, "act_order", "dynamic"),
          with(kGptq, "act_order", "none"),
          with(kGptq, "symmetric", true),
          with(with(kGptq, "group_size", -1), "clip_search", true)};
}

TEST_F(QuantizeBlockTest, GptqReplacesTheWeightsByWhatItReturns) {
  QuantizeWorld world(*team_);
  const QuantizedBlock block = world.quantize(kGptq);
  ASSERT_EQ(block.linears.size(), world.decoder().linears().size());
  for (std::size_t i = 0; i < block.linears.size(); ++i) {
    EXPECT_NO_THROW(validate(block.linears[i]));
    EXPECT_EQ(block.linears[i].name, world.decoder().linears()[i].name);
    EXPECT_EQ(download_f32(world.weights().linears[i], world.backend()),
              download_f32(dequantize(block.linears[i], world.backend()), world.backend()));
    EXPECT_LT(block.linears[i].record.at("relative_error").get<double>(), 0.3);
  }
  for (const char* part : {"forward", "gram", "factor", "solve"}) {
    EXPECT_GT(block.record.at("phases").at(part).get<double>(), 0) << part;
    EXPECT_GT(block.record.at("flops").at(part).get<double>(), 0) << part;
  }
  EXPECT_FALSE(block.record.contains("dropped_samples"));
  EXPECT_GT(world.monitor().ticks, 0);
}

// What a resumed run does from the records must end where the first run did, bit for bit.
TEST_F(QuantizeBlockTest, TheOutputIsThatOfAForwardPassOfTheQuantizedBlock) {
  for (const json& recipe : gptq_forms()) {
    QuantizeWorld world(*team_, /*shards=*/2, /*threads=*/2, /*broken_samples=*/{},
                        /*length=*/512);
    world.quantize(recipe);
    const ShardBytes output = world.residual();
    world.restart();
    EXPECT_NE(world.residual(), output);
    world.forward();
    EXPECT_EQ(world.residual(), output) << recipe;
  }
}

TEST_F(QuantizeBlockTest, TrueSequentialChangesWhatComesAfterTheFirstGroup) {
  QuantizeWorld staged(*team_), once(*team_);
  const QuantizedBlock a = staged.quantize(kGptq);
  const QuantizedBlock b = once.quantize(with(kGptq, "true_sequential", false));
  const auto& groups = staged.decoder().shared_inputs();
  for (const int i : groups.front().linears) {
    const auto index = static_cast<std::size_t>(i);
    EXPECT_TRUE(std::ranges::equal(a.linears[index].codes.bytes(), b.linears[index].codes.bytes()));
  }
  for (const int i : groups.back().linears) {
    const auto index = static_cast<std::size_t>(i);
    EXPECT_FALSE(
        std::ranges::equal(a.linears[index].codes.bytes(), b.linears[index].codes.bytes()));
  }
}

// Of an own width, or as they were; and the first of all is in one input with two others.
const json kOverrides =
    json::parse(R"([{"match": "*.q_proj", "bits": 5}, {"match": "*.down_proj", "bits": 8},
    {"match": "*.k_proj", "group_size": 64}, {"match": "*.up_proj", "skip": true}])");

bool same_codes(const QuantizedLinear& a, const QuantizedLinear& b) {
  return a.bits == b.bits && a.group_size == b.group_size && a.grid == b.grid &&
         std::ranges::equal(a.codes.bytes(), b.codes.bytes()) &&
         std::ranges::equal(a.scales.bytes(), b.scales.bytes());
}

// Where inputs and grids do not depend on the linears before, each linear is what a recipe of its settings alone makes of it.
TEST_F(QuantizeBlockTest, AnOverriddenLinearIsWhatARecipeOfItsOwnMakesOfIt) {
  for (const char* text :
       {R"({"method": "rtn"})", R"({"method": "gptq", "true_sequential": false})",
        R"({"method": "awq", "scale_search": false})"}) {
    const json usual = json::parse(text);
    QuantizeWorld world(*team_);
    const std::vector<float> up = download_f32(world.weights().linears[5], world.backend());
    const QuantizedBlock block = world.quantize(with(usual, "overrides", kOverrides));
    const auto alone = [&](const char* key, const json& value) {
      return QuantizeWorld(*team_).quantize(with(usual, key, value)).linears;
    };
    const auto plain = alone("bits", 4), five = alone("bits", 5), eight = alone("bits", 8),
               groups = alone("group_size", 64);
    for (std::size_t i = 0; i < block.linears.size(); ++i) {
      const std::string& name = block.linears[i].name;
      if (name == "mlp.up_proj") {
        EXPECT_TRUE(block.linears[i].original);
        continue;
      }
      const auto& expected = name == "self_attn.q_proj"   ? five
                             : name == "self_attn.k_proj" ? groups
                             : name == "mlp.down_proj"    ? eight
                                                          : plain;
      EXPECT_TRUE(same_codes(block.linears[i], expected[i])) << text << " " << name;
    }
    EXPECT_EQ(world.decoder().linears()[5].name, "mlp.up_proj");
    EXPECT_EQ(download_f32(world.weights().linears[5], world.backend()), up) << text;
  }
}

TEST_F(QuantizeBlockTest, AnOverrideOfAllLinearsIsTheRecipeOfThatWidth) {
  for (const char* text : {R"({"method": "gptq"})", R"({"method": "awq", "grid_points": 4})",
                           R"({"method": "signround", "iterations": 3})"}) {
    const json usual = json::parse(text);
    QuantizeWorld one(*team_), other(*team_);
    const QuantizedBlock a =
        one.quantize(with(usual, "overrides", json::parse(R"([{"match": "*", "bits": 3}])")));
    const QuantizedBlock b = other.quantize(with(usual, "bits", 3));
    for (std::size_t i = 0; i < a.linears.size(); ++i)
      EXPECT_TRUE(same_codes(a.linears[i], b.linears[i])) << text << " " << a.linears[i].name;
    EXPECT_EQ(one.residual(), other.residual()) << text;
    EXPECT_EQ(one.original(), other.original()) << text;
  }
}

// The stream goes through the original weights of what is skipped, the record has nothing of it, and no method changes it.
TEST_F(QuantizeBlockTest, WhatIsSkippedStaysAsItIs) {
  for (const char* method : {"rtn", "gptq", "awq", "signround"}) {
    for (const char* overrides :
         {R"([{"match": "*.v_proj", "skip": true}, {"match": "*.down_proj", "skip": true}])",
          R"([{"match": "*.self_attn.*", "skip": true}])", R"([{"match": "*", "skip": true}])"}) {
      json recipe = {{"method", method}, {"overrides", json::parse(overrides)}};
      if (recipe["method"] == "awq") recipe["grid_points"] = 4;
      if (recipe["method"] == "signround") recipe["iterations"] = 3;
      QuantizeWorld world(*team_);
      const BlockWeights before =
          world.decoder().load(world.checkpoint(), 0, world.backend(), LoadLinears::kYes);
      const QuantizedBlock block = world.quantize(recipe);
      const LinearOverrides parsed = parse_recipe(recipe).overrides;
      ASSERT_EQ(block.linears.size(), world.decoder().linears().size());
      for (std::size_t i = 0; i < block.linears.size(); ++i) {
        const bool skipped = is_skipped(parsed, world.decoder(), 0, i);
        EXPECT_EQ(block.linears[i].original, skipped) << recipe << block.linears[i].name;
        EXPECT_NO_THROW(validate(block.linears[i]));
        if (!skipped) continue;
        EXPECT_EQ(download_f32(world.weights().linears[i], world.backend()),
                  download_f32(before.linears[i], world.backend()));
      }
      if (recipe["method"] == "gptq" || recipe["method"] == "signround") {
        const ShardBytes output = world.residual();
        world.restart();
        world.forward();
        EXPECT_EQ(world.residual(), output) << recipe;
      }
      // A norm that q, k and v read is folded into all of them, or into none.
      EXPECT_FALSE(block.replaced.contains("input_layernorm.weight")) << recipe;
    }
  }
}

TEST_F(QuantizeBlockTest, ASampleThatIsNotFiniteIsLeftOutAndRecorded) {
  QuantizeWorld world(*team_, 5, 1, /*broken_samples=*/{7});
  const QuantizedBlock block = world.quantize(kGptq);
  const json& dropped = block.record.at("dropped_samples");
  ASSERT_EQ(dropped.size(), world.decoder().shared_inputs().size());
  for (std::size_t g = 0; g < dropped.size(); ++g) {
    EXPECT_EQ(dropped[g].at("linears"), world.decoder().shared_inputs()[g].name);
    EXPECT_EQ(dropped[g].at("count"), 1);
    EXPECT_EQ(dropped[g].at("samples"), json::parse("[7]"));
  }
  for (const QuantizedLinear& linear : block.linears) {
    EXPECT_NO_THROW(validate(linear));
    EXPECT_LT(linear.record.at("relative_error").get<double>(), 0.3) << linear.name;
  }
  EXPECT_THAT(world.monitor().said,
              testing::Contains(testing::AllOf(testing::HasSubstr("block 0"),
                                               testing::HasSubstr("1 of 12 samples"),
                                               testing::HasSubstr("q_proj"))));
}

TEST_F(QuantizeBlockTest, MoreThanATenthOfTheSamplesIsAnError) {
  std::vector<int> all(QuantizeWorld::kSamples);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
  for (const std::vector<int>& broken : {std::vector<int>{2, 7}, all}) {
    for (const bool true_sequential : {true, false}) {
      QuantizeWorld world(*team_, 5, 1, broken);
      try {
        world.quantize(with(kGptq, "true_sequential", true_sequential));
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), testing::HasSubstr("q_proj"));
        EXPECT_THAT(error.what(),
                    testing::HasSubstr(std::to_string(broken.size()) + " of 12 samples"));
      }
    }
  }
}

// 12 samples of 32 tokens span at most 384 of the 768 inputs of down_proj: without damping its H is singular.
TEST_F(QuantizeBlockTest, ASingularHessianRaisesTheDampingAndSaysSo) {
  QuantizeWorld world(*team_, /*shards=*/5, /*threads=*/1, /*broken_samples=*/{}, /*length=*/32);
  const QuantizedBlock block = world.quantize(with(kGptq, "damping", 0));
  const json& record = block.linears.back().record;
  EXPECT_EQ(block.linears.back().name, "mlp.down_proj");
  EXPECT_GT(record.at("damping_tries").get<int>(), 1);
  EXPECT_GE(record.at("damping").get<double>(), 0.01);
  EXPECT_FALSE(record.contains("fallback"));
  EXPECT_THAT(world.monitor().said,
              testing::Contains(testing::AllOf(testing::HasSubstr("block 0, down_proj"),
                                               testing::HasSubstr("damping raised to"))));
}

TEST_F(QuantizeBlockTest, GptqBeatsRoundingToNearestOnTheBlocksOutput) {
  const json rtn = {{"method", "rtn"}, {"bits", 2}, {"group_size", 128}};
  const json gptq = {{"method", "gptq"}, {"bits", 2}, {"group_size", 128}};
  QuantizeWorld world(*team_);
  world.forward();
  const ShardBytes want = world.residual();

  const auto error = [&] {
    double sum = 0;
    for (const auto& [shard, bytes] : world.residual()) {
      for (std::size_t i = 0; i + sizeof(float) <= bytes.size(); i += sizeof(float)) {
        float a = 0, b = 0;
        std::memcpy(&a, bytes.data() + i, sizeof a);
        std::memcpy(&b, want.at(shard).data() + i, sizeof b);
        sum += static_cast<double>(a - b) * (a - b);
      }
    }
    return sum;
  };
  const QuantizedBlock rounded = world.quantize(rtn);
  world.restart();
  world.quantize(gptq);
  const double gptq_error = error();
  for (std::size_t i = 0; i < rounded.linears.size(); ++i) {
    world.weights().linears[i] = dequantize(rounded.linears[i], world.backend());
  }
  world.restart();
  world.forward();
  EXPECT_LT(gptq_error, 0.7 * error());
}

}  // namespace
}  // namespace roundhouse
