// SqueezeLLM on a block of the bundled model, with gradients that are made up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "base/error.h"
#include "base/random.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;

class SqueezeLlmTest : public testing::Test {
 protected:
  SqueezeLlmTest() {
    Random random(3);
    for (const LinearSpec& spec : world_.decoder().linears()) {
      std::vector<float>& fisher =
          fisher_.emplace_back(static_cast<std::size_t>(spec.rows * spec.cols));
      for (float& f : fisher) f = static_cast<float>(random.uniform() + 0.01);
    }
  }

  QuantizedBlock quantize(json options, const json& decision = nullptr) {
    options["method"] = "squeezellm";
    std::vector<Tensor> tensors;
    SummedGradients sums;
    for (std::size_t i = 0; i < fisher_.size(); ++i) {
      const LinearSpec& spec = world_.decoder().linears()[i];
      tensors.push_back(upload_f32(fisher_[i], spec.rows, spec.cols, world_.backend()));
    }
    for (const Tensor& tensor : tensors) {
      std::vector<BlockGradients::Tile>& tiles = sums.emplace_back();
      for (std::int64_t first = 0; first < tensor.rows(); first += kTileRows) {
        tiles.push_back(
            {.first = first,
             .sum = {},
             .squares = tensor.view().row_range(first, std::min(tensor.rows(), first + kTileRows)),
             .sum_memory = {},
             .squares_memory = {}});
      }
    }
    const BlockTask site = world_.task();
    BlockTask task{site,
                   site.checkpoint,
                   site.weights,
                   nullptr,
                   nullptr,
                   site.budget,
                   site.saved_activation_bytes,
                   decision,
                   &sums};
    const Recipe recipe = parse_recipe(options);
    task.overrides = recipe.overrides;
    return make_method(recipe)->quantize(task);
  }
  // The rows of a linear's weights become what `change` makes of them.
  void change_weights(std::size_t linear,
                      const std::function<void(std::vector<float>& w)>& change) {
    Tensor& weights = world_.weights().linears[linear];
    std::vector<float> w = download_f32(weights, world_.backend());
    change(w);
    weights = upload_f32(w, weights.rows(), weights.cols(), world_.backend());
  }
  static double weighted_error(const QuantizedLinear& linear) {
    return linear.record.at("weighted_error").get<double>();
  }

  std::unique_ptr<Communicator> team_ = make_local_communicator();
  QuantizeWorld world_{*team_};
  std::vector<std::vector<float>> fisher_;
};

TEST_F(SqueezeLlmTest, HasTablesOfTheBitsAndLeavesWeightsAsTheyWere) {
  const std::vector<float> before = download_f32(world_.weights().linears[0], world_.backend());
  std::vector<QuantizedBlock> blocks;
  for (const int bits : {2, 3, 4}) blocks.push_back(quantize({{"bits", bits}}));
  EXPECT_EQ(download_f32(world_.weights().linears[0], world_.backend()), before);
  for (std::size_t i = 0; i < fisher_.size(); ++i) {
    for (std::size_t b = 0; b < 3; ++b) {
      const QuantizedLinear& linear = blocks[b].linears[i];
      EXPECT_NO_THROW(validate(linear));
      EXPECT_EQ(linear.bits, static_cast<int>(b) + 2);
      EXPECT_EQ(linear.table.shape(), (Shape{linear.rows, std::int64_t{4} << b}));
      EXPECT_TRUE(linear.sparse.empty());
      EXPECT_FALSE(linear.record.contains("unit_weight_rows"));
      EXPECT_FALSE(linear.record.contains("few_value_rows"));
      // The sum that the record says, by plain arithmetic.
      const std::vector<float> w = download_f32(world_.weights().linears[i], world_.backend());
      DequantizedRows rows(linear);
      double error = 0;
      for (std::int64_t row = 0; row < linear.rows; ++row) {
        const auto values = rows.values(row);
        for (std::size_t col = 0; col < values.size(); ++col) {
          const std::size_t at = static_cast<std::size_t>(row * linear.cols) + col;
          const double d = static_cast<double>(w[at]) - static_cast<double>(values[col]);
          error += static_cast<double>(fisher_[i][at]) * d * d;
        }
      }
      EXPECT_NEAR(weighted_error(linear), error, 1e-5 * error);
    }
    EXPECT_LT(weighted_error(blocks[1].linears[i]), 0.5 * weighted_error(blocks[0].linears[i]));
    EXPECT_LT(weighted_error(blocks[2].linears[i]), 0.5 * weighted_error(blocks[1].linears[i]));
  }
}

TEST_F(SqueezeLlmTest, ExactTablesAreNeverWorseAndOftenBetter) {
  const QuantizedBlock usual = quantize({{"bits", 3}});
  const QuantizedBlock exact = quantize({{"bits", 3}, {"exact", true}});
  for (std::size_t i = 0; i < fisher_.size(); ++i) {
    EXPECT_LT(weighted_error(exact.linears[i]), weighted_error(usual.linears[i]));
    EXPECT_GT(weighted_error(exact.linears[i]), 0.9 * weighted_error(usual.linears[i]));
  }
}

TEST_F(SqueezeLlmTest, RowsWithoutFisherInformationCountAllWeightsAlikeAndAreRecorded) {
  const auto cols = static_cast<std::ptrdiff_t>(world_.decoder().linears()[1].cols);
  for (const std::ptrdiff_t row : {0, 3}) {
    std::fill_n(fisher_[1].begin() + row * cols, cols, 0.0f);
  }
  const QuantizedBlock block = quantize({{"bits", 4}});
  EXPECT_EQ(block.linears[1].record.at("unit_weight_rows"), 2);
  EXPECT_FALSE(block.linears[0].record.contains("unit_weight_rows"));
  std::fill(fisher_[1].begin(), fisher_[1].end(), 1.0f);
  const QuantizedBlock ones = quantize({{"bits", 4}});
  const auto row_of = [&](const QuantizedBlock& b, std::size_t row) {
    DequantizedRows rows(b.linears[1]);
    const auto values = rows.values(static_cast<std::int64_t>(row));
    return std::vector<float>(values.begin(), values.end());
  };
  EXPECT_EQ(row_of(block, 3), row_of(ones, 3));
}

TEST_F(SqueezeLlmTest, RowsOfFewValuesAreKeptAsTheyAreAndRecorded) {
  const auto cols = static_cast<std::size_t>(world_.decoder().linears()[2].cols);
  change_weights(2, [&](std::vector<float>& w) {
    for (std::size_t col = 0; col < cols; ++col)
      w[5 * cols + col] = 0.25f * static_cast<float>(col % 3);
    for (std::size_t col = 0; col < cols; ++col) w[6 * cols + col] = 0.0f;
  });
  const QuantizedBlock block = quantize({{"bits", 3}});
  EXPECT_EQ(block.linears[2].record.at("few_value_rows"), 2);
  DequantizedRows rows(block.linears[2]);
  for (const std::int64_t row : {5, 6}) {
    const auto values = rows.values(row);
    for (std::size_t col = 0; col < cols; ++col) {
      EXPECT_EQ(values[col], row == 5 ? 0.25f * static_cast<float>(col % 3) : 0.0f);
    }
  }
}

TEST_F(SqueezeLlmTest, GradientsThatAreNotFiniteAreAnErrorThatNamesThePlace) {
  const auto cols = static_cast<std::size_t>(world_.decoder().linears()[0].cols);
  for (const float bad : {NAN, INFINITY}) {
    fisher_[0][2 * cols + 7] = bad;
    for (const bool sparse : {false, true}) {
      try {
        (void)quantize({{"bits", 3}, {"sparse", sparse ? json{{"outliers", 0}} : json(false)}});
        ADD_FAILURE() << "no error";
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), testing::StartsWith(world_.decoder().linears()[0].name));
        EXPECT_THAT(error.what(), testing::HasSubstr("row 2"));
        EXPECT_THAT(error.what(), testing::HasSubstr("sensitivity"));
      }
    }
  }
}

// Each time a matrix has been read it ticks. Quartiles and the first candidates of the factor take one reading together.
TEST_F(SqueezeLlmTest, ReadsTheModelThreeTimesToFindOutliers) {
  ModelTask task{.backend = world_.backend(),
                 .world = *team_,
                 .model = world_.model(),
                 .decoder = world_.decoder(),
                 .samples = nullptr,
                 .monitor = world_.monitor()};
  world_.monitor().ticks = 0;
  const json decision =
      make_method(parse_recipe({{"method", "squeezellm"}, {"sparse", true}}))->decide(task);
  const auto blocks = static_cast<int>(world_.model().config().blocks);
  EXPECT_EQ(world_.monitor().ticks,
            3 * blocks * static_cast<int>(world_.decoder().linears().size()));
  ASSERT_EQ(decision.at("large_from").size(), blocks);
  EXPECT_LE(decision.at("outliers").get<double>(), 0.004 * decision.at("weights").get<double>());
  EXPECT_GT(decision.at("outliers").get<double>(), 0.0038 * decision.at("weights").get<double>());
}

TEST_F(SqueezeLlmTest, OverridesGiveTablesOfTheirOwnOrNone) {
  const QuantizedBlock mixed = quantize(
      {{"bits", 3},
       {"overrides",
        json::parse(R"([{"match": "*.k_proj", "bits": 2}, {"match": "*.mlp.*", "skip": true}])")}});
  const QuantizedBlock two = quantize({{"bits", 2}}), three = quantize({{"bits", 3}});
  for (std::size_t i = 0; i < mixed.linears.size(); ++i) {
    const QuantizedLinear& linear = mixed.linears[i];
    EXPECT_EQ(linear.original, linear.name.starts_with("mlp")) << linear.name;
    if (linear.original) continue;
    const QuantizedLinear& other = (linear.name == "self_attn.k_proj" ? two : three).linears[i];
    EXPECT_EQ(linear.bits, other.bits);
    EXPECT_TRUE(std::ranges::equal(linear.codes.bytes(), other.codes.bytes())) << linear.name;
    EXPECT_TRUE(std::ranges::equal(linear.table.bytes(), other.table.bytes())) << linear.name;
  }
}

// Weights of skipped linears are none of those of which a share is to stand apart.
TEST_F(SqueezeLlmTest, SkippedLinearsHaveNoOutliers) {
  const auto decide = [&](const char* overrides) {
    const Recipe recipe = parse_recipe(
        {{"method", "squeezellm"}, {"sparse", true}, {"overrides", json::parse(overrides)}});
    ModelTask task{.backend = world_.backend(),
                   .world = *team_,
                   .model = world_.model(),
                   .decoder = world_.decoder(),
                   .samples = nullptr,
                   .monitor = world_.monitor(),
                   .overrides = recipe.overrides};
    return make_method(recipe)->decide(task);
  };
  const json all = decide("[]"), some = decide(R"([{"match": "*.mlp.*", "skip": true}])");
  std::int64_t attention = 0;
  for (const LinearSpec& spec : world_.decoder().linears()) {
    if (spec.name.starts_with("self_attn"))
      attention += world_.model().config().blocks * spec.rows * spec.cols;
  }
  EXPECT_EQ(some.at("weights"), attention);
  EXPECT_LE(some.at("outliers").get<double>(), 0.004 * static_cast<double>(attention));
  EXPECT_GT(some.at("outliers").get<double>(), 0.0035 * static_cast<double>(attention));
  EXPECT_EQ(all.at("large_from").size(), some.at("large_from").size());
}

// Above the k-th largest, not at it; and at the outliers' threshold, not only above.
TEST_F(SqueezeLlmTest, ThresholdsAreStrictAsTheAuthors) {
  const LinearSpec& spec = world_.decoder().linears()[0];
  const auto size = static_cast<std::size_t>(spec.rows * spec.cols);
  const auto rank = static_cast<std::size_t>(static_cast<double>(size) * 0.05 / 100);
  ASSERT_GE(rank, 5);
  for (std::size_t i = 0; i < fisher_.size(); ++i) {
    // Two above all others, and then as many that are equal as there are places, and one more.
    std::fill(fisher_[i].begin(), fisher_[i].end(), 1.0f);
    for (std::size_t k = 0; k < rank; ++k) fisher_[i][k * 3] = k < 2 ? 9.0f : 5.0f;
  }
  const QuantizedBlock block = quantize({{"bits", 3}, {"sparse", {{"outliers", 0}}}});
  EXPECT_EQ(block.linears[0].sparse.entries(), 2);
  EXPECT_EQ(block.linears[0].record.at("sparse_entries"), 2);
  EXPECT_EQ(block.linears[0].sparse.columns.as<std::int32_t>()[1], 3);

  const std::vector<float> w = download_f32(world_.weights().linears[0], world_.backend());
  const float largest =
      std::abs(*std::ranges::max_element(w, {}, [](float value) { return std::abs(value); }));
  const auto equal = std::ranges::count_if(w, [&](float v) { return std::abs(v) == largest; });
  const std::vector<float> none(world_.decoder().linears().size(), 1e9f);
  json decision = {{"large_from", json::array({none})}};
  decision["large_from"][0][0] = largest;
  const QuantizedBlock outliers =
      quantize({{"bits", 3}, {"sparse", {{"sensitive", 0}, {"outliers", 0.4}}}}, decision);
  EXPECT_EQ(outliers.linears[0].sparse.entries(), equal);
  EXPECT_EQ(outliers.linears[1].sparse.entries(), 0);
}

}  // namespace
}  // namespace roundhouse
