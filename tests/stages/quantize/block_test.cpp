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
  ASSERT_EQ(block.linears.size(), world.shape().linears().size());
  for (std::size_t i = 0; i < block.linears.size(); ++i) {
    EXPECT_NO_THROW(validate(block.linears[i]));
    EXPECT_EQ(block.linears[i].name, world.shape().linears()[i].name);
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
  const auto& groups = staged.shape().shared_inputs();
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

TEST_F(QuantizeBlockTest, ASampleThatIsNotFiniteIsLeftOutAndRecorded) {
  QuantizeWorld world(*team_, 5, 1, /*broken_samples=*/{7});
  const QuantizedBlock block = world.quantize(kGptq);
  const json& dropped = block.record.at("dropped_samples");
  ASSERT_EQ(dropped.size(), world.shape().shared_inputs().size());
  for (std::size_t g = 0; g < dropped.size(); ++g) {
    EXPECT_EQ(dropped[g].at("linears"), world.shape().shared_inputs()[g].name);
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
