// SignRound on a block of the bundled model.
#include <cmath>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "stages/quantize/signround/batch.h"
#include "stages/quantize/signround/rounding.h"
#include "stages/quantize/signround/signround.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;

// --- options

json options_of(const char* recipe) { return parse_recipe(json::parse(recipe)).options; }
std::string name_of_recipe(const char* recipe) { return parse_recipe(json::parse(recipe)).name; }

TEST(SignRoundOptionsTest, PresetsAreThoseOfThePaperAndOfToday) {
  EXPECT_EQ(
      options_of(R"({"method": "signround"})"),
      json::parse(
          R"({"preset": "paper", "bits": 4, "group_size": 128, "grid": "A-ar", "symmetric": false,
                            "iterations": 200, "batch_size": 8, "learning_rate": 0.005,
                            "minmax_learning_rate": 0.005, "minmax_tuning": true,
                            "quantized_input": true, "best_loss": true, "samples": 512,
                            "sampling": "independent", "seed": 42})"));
  EXPECT_EQ(
      options_of(R"({"method": "signround", "preset": "current"})"),
      json::parse(
          R"({"preset": "current", "bits": 4, "group_size": 128, "grid": "S-full", "symmetric": true,
                            "iterations": 200, "batch_size": 8, "learning_rate": 0.005,
                            "minmax_learning_rate": 0.005, "minmax_tuning": true,
                            "quantized_input": true, "best_loss": true, "samples": 128,
                            "sampling": "epochs", "seed": 42})"));
  const json light = options_of(R"({"method": "signround", "preset": "light"})");
  EXPECT_EQ(light.at("iterations"), 50);
  EXPECT_EQ(light.at("learning_rate"), 0.005);
  EXPECT_EQ(options_of(R"({"method": "signround", "preset": "best"})").at("learning_rate"), 0.001);
  EXPECT_EQ(
      options_of(R"({"method": "signround", "preset": "best", "bits": 3})").at("learning_rate"),
      0.002);
}

TEST(SignRoundOptionsTest, ExplicitOptionsOverrideThePreset) {
  const json options = options_of(R"({"method": "signround", "preset": "current", "iterations": 100,
                                      "symmetric": false, "minmax_learning_rate": 0.1})");
  EXPECT_EQ(options.at("grid"), "A-ar");
  EXPECT_EQ(options.at("learning_rate"), 0.01) << "one over the iterations";
  EXPECT_EQ(options.at("minmax_learning_rate"), 0.1);
  EXPECT_EQ(options.at("samples"), 128);
}

TEST(SignRoundOptionsTest, NamesSayWhatIsUnusual) {
  EXPECT_EQ(name_of_recipe(R"({"method": "signround"})"), "signround-w4g128");
  EXPECT_EQ(name_of_recipe(R"({"method": "signround", "bits": 2, "preset": "light"})"),
            "signround-w2g128-preset-light");
  EXPECT_EQ(name_of_recipe(R"({"method": "signround", "symmetric": true, "iterations": 400})"),
            "signround-w4g128-symmetric-iterations-400");
}

TEST(SignRoundOptionsTest, ResolvedReadsBackToItself) {
  for (
      const char* text :
      {R"({"method": "signround"})",
       R"({"method": "signround", "preset": "best", "bits": 2, "symmetric": false})",
       R"({"method": "signround", "preset": "current", "iterations": 7, "sampling": "independent"})"}) {
    const Recipe recipe = parse_recipe(json::parse(text));
    json again = resolved(recipe);
    again.erase("name");
    EXPECT_EQ(resolved(parse_recipe(again)), resolved(recipe)) << text;
  }
}

// Whatever the presets make of it, what is written into the run's config.yaml must be accepted there.
TEST(SignRoundOptionsTest, EveryPresetWithAnyIterationsReadsBackToItself) {
  for (const char* preset : {"paper", "current", "light", "best"}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const int iterations : {1, 2, 999, 1000, 100000}) {
        const Recipe recipe = parse_recipe({{"method", "signround"},
                                            {"preset", preset},
                                            {"bits", bits},
                                            {"iterations", iterations}});
        json again = resolved(recipe);
        again.erase("name");
        EXPECT_EQ(resolved(parse_recipe(again)), resolved(recipe))
            << preset << " " << bits << " " << iterations;
      }
    }
  }
}

TEST(SignRoundOptionsTest, TwiceTheRateIsForManyIterationsAtFewBits) {
  const auto rate = [](const char* preset, int bits, int iterations) {
    const Recipe recipe = parse_recipe(
        {{"method", "signround"}, {"preset", preset}, {"bits", bits}, {"iterations", iterations}});
    return recipe.options.at("learning_rate").get<double>() * iterations;
  };
  EXPECT_DOUBLE_EQ(rate("best", 3, 999), 1.0);
  EXPECT_DOUBLE_EQ(rate("best", 3, 1000), 2.0);
  EXPECT_DOUBLE_EQ(rate("best", 2, 2000), 2.0);
  EXPECT_DOUBLE_EQ(rate("best", 4, 1000), 1.0);
  EXPECT_DOUBLE_EQ(rate("current", 3, 1000), 2.0);
  EXPECT_DOUBLE_EQ(rate("paper", 3, 1000), 1.0);
}

TEST(SignRoundOptionsTest, ValuesOutOfRangeAreErrors) {
  for (const char* text :
       {R"({"method": "signround", "preset": "worst"})",
        R"({"method": "signround", "iterations": 0})",
        R"({"method": "signround", "batch_size": 0})", R"({"method": "signround", "seed": -1})",
        R"({"method": "signround", "learning_rate": 0})",
        R"({"method": "signround", "samples": 0})", R"({"method": "signround", "grid": "A-gptq"})",
        R"({"method": "signround", "sampling": "all"})",
        R"({"method": "signround", "damping": 0.1})"}) {
    EXPECT_THROW(parse_recipe(json::parse(text)), RecipeError) << text;
  }
}

TEST(SignRoundOptionsTest, NeedsFollowFromTheInput) {
  const auto needs = [](const char* text) {
    return make_method(parse_recipe(json::parse(text)))->needs();
  };
  EXPECT_TRUE(needs(R"({"method": "signround"})").quantized_stream);
  EXPECT_TRUE(needs(R"({"method": "signround"})").full_precision_stream);
  EXPECT_FALSE(needs(R"({"method": "signround", "quantized_input": false})").quantized_stream);
}

// --- batches

TEST(BatchSamplerTest, EpochsUseEverySampleOnceBeforeAnyTwice) {
  BatchSampler sampler(Sampling::kEpochs, 11, 4, 1, 0);
  std::set<std::vector<int>> orders;
  for (int epoch = 0; epoch < 5; ++epoch) {
    std::vector<int> seen = sampler.next();
    const std::vector<int> second = sampler.next();
    seen.insert(seen.end(), second.begin(), second.end());
    EXPECT_EQ(std::set<int>(seen.begin(), seen.end()).size(), 8u) << "3 of 11 are left out";
    orders.insert(seen);
  }
  EXPECT_EQ(orders.size(), 5u) << "each epoch in another order";
}

TEST(BatchSamplerTest, IndependentBatchesReachEverySampleAndRepeatAcrossBatches) {
  BatchSampler sampler(Sampling::kIndependent, 11, 4, 1, 0);
  std::vector<int> times(11);
  bool repeated = false;
  std::vector<int> last;
  for (int i = 0; i < 1000; ++i) {
    const std::vector<int> batch = sampler.next();
    EXPECT_EQ(std::set<int>(batch.begin(), batch.end()).size(), 4u);
    for (const int sample : batch) {
      ++times.at(static_cast<std::size_t>(sample));
      repeated = repeated || std::ranges::count(last, sample) > 0;
    }
    last = batch;
  }
  EXPECT_TRUE(repeated);
  for (const int count : times) EXPECT_NEAR(count, 4000 / 11, 80);  // five standard deviations
}

TEST(BatchSamplerTest, FollowsFromSeedAndBlock) {
  const auto batches = [](std::uint64_t seed, int block) {
    BatchSampler sampler(Sampling::kIndependent, 100, 8, seed, block);
    return std::vector<std::vector<int>>{sampler.next(), sampler.next()};
  };
  EXPECT_EQ(batches(1, 2), batches(1, 2));
  EXPECT_NE(batches(1, 2), batches(1, 3));
  EXPECT_NE(batches(1, 2), batches(2, 2));
}

TEST(BatchSamplerTest, FewSamplesMakeASmallBatch) {
  for (const Sampling sampling : {Sampling::kIndependent, Sampling::kEpochs}) {
    BatchSampler sampler(sampling, 3, 8, 1, 0);
    std::vector<int> batch = sampler.next();
    std::ranges::sort(batch);
    EXPECT_EQ(batch, (std::vector<int>{0, 1, 2}));
  }
}

TEST(BatchSamplerTest, PartsAreAThousandTokensButFourAtLeast) {
  EXPECT_EQ(parts_of_batch(8, 2048), 8);
  EXPECT_EQ(parts_of_batch(8, 1024), 8);
  EXPECT_EQ(parts_of_batch(8, 512), 4);
  EXPECT_EQ(parts_of_batch(8, 64), 4);
  EXPECT_EQ(parts_of_batch(3, 64), 3);
  EXPECT_EQ(parts_of_batch(1, 5000), 1);
  EXPECT_EQ(parts_of_batch(100, 100), 10);
}

// --- the method

class SignRoundTest : public testing::Test {
 protected:
  QuantizedBlock quantize(const json& changes) {
    json recipe = {{"method", "signround"}, {"bits", 2}, {"iterations", 30}, {"batch_size", 12}};
    recipe.update(changes);
    return world_.quantize(recipe);
  }
  static std::vector<float> values_of(const ShardBytes& shards) {
    std::vector<float> values;
    for (const auto& [shard, bytes] : shards) {
      const std::size_t at = values.size();
      values.resize(at + bytes.size() / sizeof(float));
      std::memcpy(values.data() + at, bytes.data(), bytes.size());
    }
    return values;
  }
  // Mean square of the difference between the two streams.
  double block_error() {
    const auto a = values_of(world_.residual()), b = values_of(world_.original());
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    return sum / static_cast<double>(a.size());
  }
  // The same for round to nearest.
  double error_of_rtn(const char* grid, int bits) {
    QuantizeWorld world(*team_, 5);
    const BlockWeights original = world.decoder().load(world.checkpoint(), 0, world.backend());
    world.forward_original(original);
    world.weights().linears.clear();
    world.weights() = world.decoder().load(world.checkpoint(), 0, world.backend());
    const QuantizedBlock block =
        world.quantize({{"method", "rtn"}, {"bits", bits}, {"grid", grid}});
    for (std::size_t i = 0; i < block.linears.size(); ++i) {
      world.weights().linears[i] = dequantize(block.linears[i], world.backend());
    }
    world.forward();
    const auto a = values_of(world.residual()), b = values_of(world.original());
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    return sum / static_cast<double>(a.size());
  }

  std::unique_ptr<Communicator> team_ = make_local_communicator();
  QuantizeWorld world_{*team_, 5, /*threads=*/2};
};

TEST_F(SignRoundTest, LossesAreThoseOfRoundToNearestAndOfWhatItReturns) {
  // Every batch is all samples, so losses can be told from the streams.
  for (const char* grid : {"A-ar", "S-full"}) {
    world_.restart();
    world_.weights() = world_.decoder().load(world_.checkpoint(), 0, world_.backend());
    const QuantizedBlock block = quantize({{"grid", grid}});
    const json& loss = block.record.at("loss");
    const double rtn = error_of_rtn(grid, 2), first = loss.at("first"), best = loss.at("best");
    EXPECT_NEAR(first, rtn, 1e-5 * rtn) << grid;
    EXPECT_NEAR(best, block_error(), 1e-5 * best) << grid;
    EXPECT_LT(best, 0.75 * first) << grid;
    EXPECT_GT(loss.at("best_iteration"), 5) << grid;
    EXPECT_EQ(block.record.at("iterations"), 30);
    EXPECT_EQ(block.record.at("samples"), 12) << "what there is";
    EXPECT_EQ(block.record.at("batch_size"), 12);
    EXPECT_FALSE(block.record.contains("skipped_steps"));
    for (const char* part : {"target", "forward", "backward", "output"}) {
      EXPECT_GT(block.record.at("phases").at(part).get<double>(), 0) << part;
      EXPECT_GT(block.record.at("flops").at(part).get<double>(), 0) << part;
    }
  }
}

TEST_F(SignRoundTest, ReturnsWhatItLeavesInTheWeightsAndTheStreams) {
  const BlockWeights original = world_.decoder().load(world_.checkpoint(), 0, world_.backend());
  const QuantizedBlock block = quantize({{"iterations", 4}, {"batch_size", 3}});
  ASSERT_EQ(block.linears.size(), world_.decoder().linears().size());
  for (std::size_t i = 0; i < block.linears.size(); ++i) {
    const QuantizedLinear& linear = block.linears[i];
    EXPECT_NO_THROW(validate(linear));
    EXPECT_EQ(linear.name, world_.decoder().linears()[i].name);
    EXPECT_EQ(linear.grid, Grid::kAsymAutoRound);
    EXPECT_EQ(download_f32(world_.weights().linears[i], world_.backend()),
              download_f32(dequantize(linear, world_.backend()), world_.backend()));
    EXPECT_GT(linear.record.at("relative_error").get<double>(), 0.0);
    EXPECT_LT(linear.record.at("relative_error").get<double>(), 0.5);
    EXPECT_FALSE(linear.record.contains("fallback"));
  }
  const ShardBytes residual = world_.residual(), target = world_.original();
  world_.restart();
  world_.forward();
  EXPECT_EQ(world_.residual(), residual);
  world_.forward_original(original);
  EXPECT_EQ(world_.original(), target);
}

TEST_F(SignRoundTest, AllItsWorkBelongsToAPhase) {
  QuantizeWorld world(*team_);
  const json time =
      world.quantize(json::parse(R"({"method": "signround", "iterations": 2})")).record["phases"];
  std::vector<std::string> phases;
  for (const auto& [phase, seconds] : time.items()) {
    phases.push_back(phase);
    EXPECT_GE(seconds.get<double>(), 0.0) << phase;
  }
  EXPECT_THAT(phases, testing::ElementsAre("backward", "fetch", "forward", "gather", "keep", "loss",
                                           "other", "output", "round", "step", "target"));
}

TEST_F(SignRoundTest, OneIterationIsRoundToNearest) {
  for (const char* grid : {"A-ar", "S-full"}) {
    world_.restart();
    world_.weights() = world_.decoder().load(world_.checkpoint(), 0, world_.backend());
    QuantizeWorld other(*team_, 5);
    const QuantizedBlock rtn = other.quantize({{"method", "rtn"}, {"bits", 2}, {"grid", grid}});
    const QuantizedBlock got = quantize({{"grid", grid}, {"iterations", 1}});
    for (std::size_t i = 0; i < rtn.linears.size(); ++i) {
      EXPECT_TRUE(std::ranges::equal(got.linears[i].codes.bytes(), rtn.linears[i].codes.bytes()));
      EXPECT_TRUE(std::ranges::equal(got.linears[i].scales.bytes(), rtn.linears[i].scales.bytes()));
      EXPECT_TRUE(std::ranges::equal(got.linears[i].zeros.bytes(), rtn.linears[i].zeros.bytes()));
      EXPECT_EQ(got.linears[i].record, rtn.linears[i].record);
    }
  }
}

TEST_F(SignRoundTest, WithoutMinmaxTuningGridsStayAndCodesMoveByOne) {
  QuantizeWorld other(*team_, 5);
  const QuantizedBlock rtn = other.quantize({{"method", "rtn"}, {"bits", 4}, {"grid", "A-ar"}});
  const QuantizedBlock got =
      quantize({{"bits", 4}, {"minmax_tuning", false}, {"learning_rate", 0.02}});
  std::size_t moved = 0;
  for (std::size_t i = 0; i < rtn.linears.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(got.linears[i].scales.bytes(), rtn.linears[i].scales.bytes()));
    const auto a = got.linears[i].codes.as<std::uint8_t>();
    const auto b = rtn.linears[i].codes.as<std::uint8_t>();
    for (std::size_t j = 0; j < a.size(); ++j) {
      ASSERT_LE(std::abs(int{a[j]} - int{b[j]}), 1);  // offsets stay below 0.31
      moved += a[j] != b[j] ? 1 : 0;
    }
  }
  EXPECT_GT(moved, 1000u);
}

TEST_F(SignRoundTest, TunesOnTheFullPrecisionStreamAlone) {
  BlockTask task = world_.task();
  task.residual = nullptr;
  const auto method = make_method(parse_recipe(
      {{"method", "signround"}, {"bits", 2}, {"iterations", 6}, {"quantized_input", false}}));
  const QuantizedBlock block = method->quantize(task);
  EXPECT_LT(block.record.at("loss").at("best"), block.record.at("loss").at("first"));
  const ShardBytes target = world_.original();
  world_.restart();
  world_.forward_original(world_.decoder().load(world_.checkpoint(), 0, world_.backend()));
  EXPECT_EQ(world_.original(), target);
}

TEST_F(SignRoundTest, SavesOnlyInputsWhereMemoryIsShortWithTheSameBits) {
  const json recipe = {{"method", "signround"}, {"bits", 2}, {"iterations", 4}};
  const QuantizedBlock want = world_.quantize(recipe);
  const ShardBytes output = world_.residual();
  EXPECT_TRUE(world_.monitor().events.empty());

  QuantizeWorld short_of_memory(*team_, 5, 2);
  BlockTask task = short_of_memory.task();
  task.saved_activation_bytes = 100'000;
  const QuantizedBlock got = make_method(parse_recipe(recipe))->quantize(task);
  EXPECT_EQ(short_of_memory.residual(), output);
  for (std::size_t i = 0; i < want.linears.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(got.linears[i].codes.bytes(), want.linears[i].codes.bytes()));
  }
  ASSERT_EQ(short_of_memory.monitor().events.size(), 1u);
  EXPECT_EQ(short_of_memory.monitor().events[0].at("event"), "activations computed again");
  EXPECT_EQ(short_of_memory.monitor().events[0].at("budget"), 100'000);
}

TEST_F(SignRoundTest, TheLastIterationsCodesIfAskedFor) {
  // Far too long steps: it gets worse.
  const QuantizedBlock block =
      quantize({{"best_loss", false}, {"learning_rate", 0.9}, {"iterations", 4}});
  const double best = block.record.at("loss").at("best");
  EXPECT_GT(block_error(), 1.01 * best);
}

TEST_F(SignRoundTest, LooksAtTheFirstSamplesOnly) {
  QuantizeWorld broken(*team_, 5, 2, {9, 11});
  const QuantizedBlock block = broken.quantize(
      {{"method", "signround"}, {"iterations", 4}, {"batch_size", 9}, {"samples", 9}});
  EXPECT_EQ(block.record.at("samples"), 9);
  EXPECT_FALSE(block.record.contains("skipped_steps"));
}

TEST_F(SignRoundTest, SkipsStepsWhoseLossIsNotFinite) {
  QuantizeWorld broken(*team_, 5, 2, {3});
  const QuantizedBlock block = broken.quantize(
      {{"method", "signround"}, {"preset", "current"}, {"iterations", 12}, {"batch_size", 4}});
  EXPECT_EQ(block.record.at("skipped_steps"), 4) << "one of three batches an epoch";
  EXPECT_TRUE(std::isfinite(block.record.at("loss").at("best").get<double>()));
  EXPECT_FALSE(block.linears[0].record.contains("fallback"));
}

TEST_F(SignRoundTest, RoundsToNearestWhereNoLossIsFinite) {
  QuantizeWorld broken(*team_, 5, 2, {3});
  const QuantizedBlock block = broken.quantize(
      {{"method", "signround"}, {"bits", 2}, {"iterations", 3}, {"batch_size", 12}});
  EXPECT_EQ(block.record.at("skipped_steps"), 3);
  EXPECT_FALSE(block.record.contains("loss"));
  QuantizeWorld other(*team_, 5);
  const QuantizedBlock rtn = other.quantize({{"method", "rtn"}, {"bits", 2}, {"grid", "A-ar"}});
  for (std::size_t i = 0; i < rtn.linears.size(); ++i) {
    EXPECT_EQ(block.linears[i].record.at("fallback"), "rtn");
    EXPECT_TRUE(std::ranges::equal(block.linears[i].codes.bytes(), rtn.linears[i].codes.bytes()));
  }
  EXPECT_THAT(broken.monitor().said,
              testing::ElementsAre("block 0: no loss is finite; rounded to nearest instead"));
}

TEST_F(SignRoundTest, WeightsWithoutAGridAreErrorsThatNameTheLinear) {
  Tensor& weights = world_.weights().linears[3];
  std::vector<float> values = download_f32(weights, world_.backend());
  values[5] = 1e30f;
  weights = upload_f32(values, weights.rows(), weights.cols(), world_.backend());
  try {
    quantize({{"iterations", 1}});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("self_attn.o_proj"));
  }
}

TEST_F(SignRoundTest, SeedsChangeTheResult) {
  const auto codes = [&](int seed) {
    QuantizeWorld world(*team_, 5, 2);
    const QuantizedBlock block = world.quantize({{"method", "signround"},
                                                 {"bits", 2},
                                                 {"iterations", 4},
                                                 {"batch_size", 2},
                                                 {"best_loss", false},
                                                 {"seed", seed}});
    const auto bytes = block.linears[0].codes.bytes();
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  const auto one = codes(1);
  EXPECT_EQ(codes(1), one);
  EXPECT_NE(codes(2), one);
}

}  // namespace
}  // namespace roundhouse
