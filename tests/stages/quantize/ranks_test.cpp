// Quantizing has the same bits on any number of ranks and threads. Rank 0 also does the whole job alone, with a local
// communicator and two threads, and compares: so all rank counts give one result.
#include <gtest/gtest.h>

#include "base/error.h"
#include "stages/quantize/gptq/factor.h"
#include "tests/comm/mpi_world.h"
#include "tests/stages/same_results.h"

namespace roundhouse {
namespace {

using nlohmann::json;

class QuantizeRanksTest : public testing::Test {
 protected:
  void expect_same_bits(const json& recipe, int shards, const std::vector<int>& broken = {},
                        std::int64_t length = 96, bool bf16 = false) {
    const auto local = make_local_communicator();
    const auto world = [&](Communicator& ranks, int threads) {
      return std::make_unique<QuantizeWorld>(ranks, shards, threads, broken, length,
                                             QuantizeWorld::bundled_model(), "cpu", bf16);
    };
    const auto alone = [&] { return world(*local, /*threads=*/2); };
    const auto with_all = world(test_world(), /*threads=*/1);
    QuantizeWorld& team = *with_all;
    expect_same_results(alone, team, recipe);
  }
};

TEST_F(QuantizeRanksTest, Gptq) {
  expect_same_bits(json::parse(R"({"method": "gptq", "bits": 3, "group_size": 100})"), 5);
}

TEST_F(QuantizeRanksTest, GptqWithFewerShardsThanRanks) {
  expect_same_bits(json::parse(R"({"method": "gptq", "bits": 2, "symmetric": true})"), 3);
}

TEST_F(QuantizeRanksTest, GptqWithDynamicGroupsFromTheOriginalWeights) {
  expect_same_bits(json::parse(R"({"method": "gptq", "bits": 4, "group_size": 64,
                                   "act_order": "dynamic", "true_sequential": false})"),
                   4);
}

TEST_F(QuantizeRanksTest, GptqWithSeveralMicroBatchesAShard) {
  expect_same_bits(json::parse(R"({"method": "gptq", "bits": 3})"), 2, {5}, 512);
}

TEST_F(QuantizeRanksTest, GptqWithABrokenSampleAndNoDamping) {
  expect_same_bits(json::parse(R"({"method": "gptq", "damping": 0})"), 5, {4});
}

TEST_F(QuantizeRanksTest, Awq) {
  expect_same_bits(json::parse(R"({"method": "awq", "bits": 3, "group_size": 100})"), 5, {4});
}

TEST_F(QuantizeRanksTest, AwqWithFewerShardsThanRanksAndClippingOverAllTokens) {
  expect_same_bits(json::parse(R"({"method": "awq", "group_size": -1, "clip_tokens": 0,
                                   "grid_points": 5})"),
                   3);
}

TEST_F(QuantizeRanksTest, AwqWithSeveralMicroBatchesAShard) {
  expect_same_bits(json::parse(R"({"method": "awq", "grid_points": 4})"), 2, {5}, 512);
}

TEST_F(QuantizeRanksTest, Rtn) {
  expect_same_bits(json::parse(R"({"method": "rtn", "bits": 3, "symmetric": true})"), 5);
}

TEST_F(QuantizeRanksTest, SignRound) {
  expect_same_bits(json::parse(R"({"method": "signround", "bits": 2, "iterations": 5})"), 5);
}

TEST_F(QuantizeRanksTest, ProductsInBf16) {
  try {
    (void)make_backend("cpu", {.threads = 1, .bf16 = true});
  } catch (const InputError& error) {
    GTEST_SKIP() << error.what();
  }
  for (const char* text :
       {R"({"method": "gptq"})", R"({"method": "awq", "grid_points": 4})",
        R"({"method": "signround", "bits": 2, "iterations": 3, "batch_size": 5})"}) {
    expect_same_bits(json::parse(text), 5, {4}, 96, /*bf16=*/true);
  }
}

TEST_F(QuantizeRanksTest, WithOverrides) {
  const char* const overrides =
      R"([{"match": "*.q_proj", "bits": 6, "group_size": 64}, {"match": "*.v_proj", "skip": true},
          {"match": "*.mlp.*", "skip": true}, {"match": "*.up_proj", "bits": 3}])";
  for (const char* text :
       {R"({"method": "rtn"})", R"({"method": "gptq"})", R"({"method": "awq", "grid_points": 3})",
        R"({"method": "signround", "iterations": 3})"}) {
    json recipe = json::parse(text);
    recipe["overrides"] = json::parse(overrides);
    expect_same_bits(recipe, 5, {4});
  }
}

TEST_F(QuantizeRanksTest, SignRoundByEpochsWithFewerShardsThanRanksAndABrokenSample) {
  expect_same_bits(json::parse(R"({"method": "signround", "preset": "light", "bits": 3,
                                   "group_size": 100, "iterations": 4})"),
                   2, {4});
}

TEST_F(QuantizeRanksTest, SignRoundWithFewerPartsThanRanksOnTheFullPrecisionStream) {
  expect_same_bits(json::parse(R"({"method": "signround", "iterations": 3, "batch_size": 3,
                                   "quantized_input": false, "best_loss": false})"),
                   5);
}

TEST_F(QuantizeRanksTest, SignRoundWithoutAFiniteLoss) {
  expect_same_bits(json::parse(R"({"method": "signround", "iterations": 2, "batch_size": 12})"), 4,
                   {1});
}

TEST_F(QuantizeRanksTest, TooManyBrokenSamplesAreAnErrorOnEveryRank) {
  QuantizeWorld team(test_world(), 5, 1, {0, 1, 2});
  EXPECT_THROW(team.quantize(json::parse(R"({"method": "gptq"})")), Error);
}

TEST_F(QuantizeRanksTest, AFactorIsSharedWhole) {
  Communicator& world = test_world();
  const auto backend = make_backend("cpu", {.threads = 1});
  NullMonitor monitor;
  const std::vector<float> values{2, 1, 0, 1, 3, 1, 0, 1, 4};
  HostTensor h(DType::kF32, {3, 3});
  std::ranges::copy(values, h.as<float>().begin());
  const Tensor hessian = Tensor::upload(*backend, h.view(), DType::kF32);
  const HessianFactor want = factorize(hessian, 0.01, true, *backend, monitor);
  for (int owner = 0; owner < world.size(); ++owner) {
    HessianFactor factor;
    if (world.rank() == owner) factor = factorize(hessian, 0.01, true, *backend, monitor);
    share(factor, 3, owner, world, world, *backend, monitor);
    EXPECT_EQ(factor.order, want.order);
    EXPECT_EQ(factor.diagonal, want.diagonal);
    EXPECT_EQ(factor.dead, want.dead);
    EXPECT_EQ(factor.damping, 0.01);
    EXPECT_EQ(factor.tries, 1);
    EXPECT_EQ(download_f32(factor.upper, *backend), download_f32(want.upper, *backend));
  }
}

}  // namespace
}  // namespace roundhouse
