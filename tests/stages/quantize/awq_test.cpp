// AWQ on a block of the bundled model, against the literal procedure in double precision.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "stages/quantize/awq/fold.h"
#include "tests/reference/awq_reference.h"
#include "tests/stages/awq_models.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using reference::Matrix;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(AwqScalesTest, FollowTheMagnitudes) {
  // 4^(1/2) = 2, 1, 16^(1/2) = 4; divided by sqrt(4 * 1).
  EXPECT_THAT(candidate_scales({4, 1, 16}, 0.5), ElementsAre(1.0f, 0.5f, 2.0f));
  EXPECT_THAT(candidate_scales({4, 1, 16}, 0.0), ElementsAre(1.0f, 1.0f, 1.0f));
}

TEST(AwqScalesTest, OfDeadChannelsHaveAFloor) {
  // 0 becomes 1e-4, for ratio 0 too it is 0^0 = 1.
  EXPECT_THAT(candidate_scales({0, 1}, 0.5), ElementsAre(0.01f, 100.0f));
  EXPECT_THAT(candidate_scales({0, 1}, 0.0), ElementsAre(1.0f, 1.0f));
  EXPECT_THAT(candidate_scales({0, 0}, 0.5), ElementsAre(1.0f, 1.0f));
}

TEST(AwqScalesTest, ThatAreNotFiniteAreOne) {
  for (const float s : candidate_scales({kInfinity, 1e-3, 2}, 0.5)) EXPECT_EQ(s, 1.0f);
}

class AwqTest : public testing::Test {
 protected:
  static constexpr std::int64_t kLength = 8;  // few tokens: the literal search takes its time

  Matrix to_matrix(const Tensor& tensor, Backend& backend) {
    Matrix m(tensor.rows(), tensor.cols());
    const std::vector<float> values = download_f32(tensor, backend);
    std::copy(values.begin(), values.end(), m.values.begin());
    return m;
  }

  // The inputs of the groups of the original block, for all samples.
  std::vector<Matrix> inputs_of(QuantizeWorld& world) {
    std::vector<Matrix> inputs;
    const BlockTask task = world.task();
    for (int shard = 0; shard < world.samples().shards(); ++shard) {
      for (const MicroBatch& batch : micro_batches_of_shard(world.samples(), shard)) {
        BlockState state = state_of(
            batch, task.original->load(batch.shard, batch.first_row, batch.rows(), task.backend));
        for (std::size_t g = 0; g < task.decoder.shared_inputs().size(); ++g) {
          task.decoder.prepare(static_cast<int>(g), task.weights, state, task.backend);
          const Matrix part = to_matrix(state.input, task.backend);
          if (inputs.size() <= g) inputs.emplace_back(0, part.cols);
          inputs[g].values.insert(inputs[g].values.end(), part.values.begin(), part.values.end());
          inputs[g].rows += part.rows;
          task.decoder.apply(static_cast<int>(g), task.weights, state, task.backend);
        }
      }
    }
    return inputs;
  }

  // The output of the module that a set is judged by, with these weights by linear.
  Matrix module_output(const QuantizeWorld& world, const ScaleSet& set, const Matrix& x,
                       const std::vector<Matrix>& w) {
    const auto times = [&](const Matrix& input, std::size_t linear) {
      return reference::product(input, reference::transpose(w[linear]));
    };
    if (set.group == 1) return times(x, 3);
    if (set.group == 2) return times(reference::gated_product(times(x, 4), times(x, 5)), 6);
    if (set.group == 3) return times(x, 6);
    const ModelConfig& config = world.model().config();
    const std::int64_t half = config.head_dim / 2;
    Matrix cos(kLength, half), sin(kLength, half);
    for (std::int64_t p = 0; p < kLength; ++p) {
      for (std::int64_t j = 0; j < half; ++j) {
        const double angle =
            static_cast<double>(p) *
            std::pow(config.rope.theta, -static_cast<double>(j) / static_cast<double>(half));
        cos(p, j) = std::cos(angle);
        sin(p, j) = std::sin(angle);
      }
    }
    const Matrix q = reference::rope(times(x, 0), cos, sin, config.heads, kLength);
    const Matrix k = reference::rope(times(x, 1), cos, sin, config.kv_heads, kLength);
    return times(reference::attention(q, k, times(x, 2), config.heads, config.kv_heads, kLength, 0,
                                      1 / std::sqrt(static_cast<double>(config.head_dim))),
                 3);
  }

  // Every set's search, the fold, the clipping and the rounding, as llm-awq does them.
  void expect_literal(QuantizeWorld& world, const json& recipe) {
    const DecoderBlock& decoder = world.decoder();
    const std::vector<Matrix> inputs = inputs_of(world);
    std::vector<Matrix> w;
    for (const Tensor& tensor : world.weights().linears) {
      w.push_back(to_matrix(tensor, world.backend()));
    }
    const QuantizedBlock got = world.quantize(recipe);
    const reference::AwqGrid grid{.bits = recipe.at("bits"), .group_size = recipe.at("group_size")};
    const int points = recipe.at("grid_points");

    ASSERT_EQ(got.record.at("scale_sets").size(), decoder.scale_sets().size());
    std::vector<ChosenScales> chosen;
    for (std::size_t i = 0; i < decoder.scale_sets().size(); ++i) {
      const ScaleSet& set = decoder.scale_sets()[i];
      const Matrix& x = inputs[set.group];
      const Matrix want = module_output(world, set, x, w);
      std::vector<double> losses;
      for (int c = 0; c < points; ++c) {
        const std::vector<float> s =
            reference::scales(reference::magnitudes(x), static_cast<double>(c) / points);
        std::vector<Matrix> trial = w;
        for (const int linear : decoder.shared_inputs()[set.group].linears) {
          Matrix& weights = trial[linear];
          weights = reference::scaled_rounding(weights, s, grid);
        }
        const Matrix output = module_output(world, set, x, trial);
        double sum = 0;
        for (std::size_t v = 0; v < want.values.size(); ++v) {
          sum += (output.values[v] - want.values[v]) * (output.values[v] - want.values[v]);
        }
        losses.push_back(sum / static_cast<double>(want.values.size()));
      }
      const auto best = std::min_element(losses.begin(), losses.end()) - losses.begin();
      const json& record = got.record.at("scale_sets").at(i);
      // float32 activations against double; a weight at a tie may round the other way.
      EXPECT_NEAR(record.at("loss_before").get<double>(), losses[0], 1e-3 * losses[0]) << record;
      EXPECT_NEAR(record.at("loss").get<double>(), losses[best], 1e-3 * losses[best]) << record;
      EXPECT_EQ(record.at("ratio").get<double>(), static_cast<double>(best) / points) << record;
      EXPECT_LT(losses[best], losses[0]) << "a search worth its name";
      chosen.push_back(
          {reference::scales(reference::magnitudes(x), static_cast<double>(best) / points),
           json::object()});
    }

    const Folding folding = fold(world.model().checkpoint(), decoder, 0, chosen);
    for (std::size_t g = 0; g < decoder.shared_inputs().size(); ++g) {
      for (const int index : decoder.shared_inputs()[g].linears) {
        const auto i = static_cast<std::size_t>(index);
        Matrix folded = w[i], x = inputs[g];
        const auto& factors = folding.column_factors[i];
        const auto& divisors = folding.row_divisors[i];
        for (std::int64_t c = 0; c < folded.cols && !factors.empty(); ++c) {
          const float factor = factors[c];
          for (std::int64_t r = 0; r < folded.rows; ++r) {
            folded(r, c) = static_cast<double>(static_cast<float>(folded(r, c)) * factor);
          }
          for (std::int64_t t = 0; t < x.rows; ++t) x(t, c) /= static_cast<double>(factor);
        }
        for (std::int64_t r = 0; r < folded.rows && !divisors.empty(); ++r) {
          for (std::int64_t c = 0; c < folded.cols; ++c) {
            folded(r, c) = static_cast<double>(static_cast<float>(folded(r, c)) / divisors[r]);
          }
        }
        const bool clips = index != 0 && index != 1;
        EXPECT_EQ(got.linears[i].record.contains("clip"), clips);
        if (clips) folded = reference::clip(folded, x, grid, 10).clipped;
        const Matrix want = reference::rounded(folded, grid);
        const Matrix values =
            to_matrix(dequantize(got.linears[i], world.backend()), world.backend());
        std::int64_t different = 0;
        for (std::size_t v = 0; v < want.values.size(); ++v) {
          different += values.values[v] != want.values[v];
        }
        // Candidates and codes that are equal but for a rounding of float32 may go either way, for a group each.
        EXPECT_LT(static_cast<double>(different), 0.005 * static_cast<double>(want.values.size()))
            << got.linears[i].name;
      }
    }
  }

  const json recipe_ = {
      {"method", "awq"}, {"bits", 3}, {"group_size", 64}, {"grid_points", 5}, {"clip_tokens", 0}};
  std::unique_ptr<Communicator> team_ = make_local_communicator();
};

TEST_F(AwqTest, EqualsTheLiteralProcedure) {
  QuantizeWorld world(*team_, 5, 2, {}, kLength);
  ASSERT_EQ(world.decoder().scale_sets().size(), 3u) << "grouped queries: o_proj is not scaled";
  expect_literal(world, recipe_);
}

TEST_F(AwqTest, EqualsTheLiteralProcedureWhereEveryHeadHasItsKeys) {
  const TemporaryFolder folder;
  QuantizeWorld world(*team_, 5, 2, {}, kLength, ungrouped_model(folder));
  ASSERT_EQ(world.decoder().scale_sets().size(), 4u);
  expect_literal(world, recipe_);
}

TEST_F(AwqTest, WithoutItsSearchesItIsRoundingToNearest) {
  QuantizeWorld a(*team_), b(*team_);
  const QuantizedBlock awq =
      a.quantize({{"method", "awq"}, {"bits", 3}, {"scale_search", false}, {"clip_search", false}});
  const QuantizedBlock rtn = b.quantize({{"method", "rtn"}, {"bits", 3}, {"grid", "A-awq"}});
  ASSERT_EQ(awq.linears.size(), rtn.linears.size());
  for (std::size_t i = 0; i < rtn.linears.size(); ++i) {
    EXPECT_TRUE(std::ranges::equal(awq.linears[i].codes.bytes(), rtn.linears[i].codes.bytes()));
    EXPECT_TRUE(std::ranges::equal(awq.linears[i].scales.bytes(), rtn.linears[i].scales.bytes()));
    EXPECT_EQ(awq.linears[i].record, rtn.linears[i].record);
  }
  EXPECT_TRUE(awq.replaced.empty());
}

// What a resumed run does: the stream of the original model, whatever was quantized.
TEST_F(AwqTest, LeavesTheOutputOfTheOriginalBlockAndItsWeights) {
  for (const bool search : {true, false}) {
    QuantizeWorld world(*team_, 2, 2, {}, 512);
    world.quantize({{"method", "awq"}, {"grid_points", 2}, {"scale_search", search}});
    const ShardBytes output = world.original();
    world.restart();
    world.forward_original(world.weights());
    EXPECT_EQ(world.original(), output);
    const BlockWeights fresh = world.decoder().load(world.model().checkpoint(), 0, world.backend());
    for (std::size_t i = 0; i < fresh.linears.size(); ++i) {
      EXPECT_EQ(download_f32(world.weights().linears[i], world.backend()),
                download_f32(fresh.linears[i], world.backend()));
    }
  }
}

TEST_F(AwqTest, LeavesOutSamplesThatAreNotFinite) {
  QuantizeWorld world(*team_, 5, 2, {4});
  const QuantizedBlock block = world.quantize({{"method", "awq"}, {"grid_points", 3}});
  ASSERT_EQ(block.record.at("dropped_samples").size(), 1u);
  EXPECT_EQ(block.record["dropped_samples"][0].at("samples"), json({4}));
  for (const json& set : block.record.at("scale_sets")) EXPECT_TRUE(set.at("loss").is_number());
  QuantizeWorld broken(*team_, 5, 1, {4, 5});
  EXPECT_THROW(broken.quantize({{"method", "awq"}}), Error);
}

// Inputs so large that squared errors are beyond float32, while the block itself is not.
TEST_F(AwqTest, WithoutAFiniteLossNothingIsScaledAndThatIsSaid) {
  QuantizeWorld world(*team_);
  Tensor& norm = world.weights().norms[1];
  std::vector<float> values = download_f32(norm, world.backend());
  for (float& value : values) value *= 1e13f;
  norm = upload_f32(values, 1, std::ssize(values), world.backend());
  const QuantizedBlock block = world.quantize({{"method", "awq"}, {"grid_points", 3}});
  const json& sets = block.record.at("scale_sets");
  EXPECT_FALSE(sets[0].contains("fallback"));
  for (const std::size_t i : {1u, 2u}) {
    EXPECT_EQ(sets[i].at("fallback"), "no scaling");
    EXPECT_TRUE(sets[i].at("loss").is_null());
    EXPECT_EQ(sets[i].at("ratio"), 0.0);
  }
  EXPECT_THAT(world.monitor().said, testing::Contains(HasSubstr("not scaled")));
  ASSERT_EQ(block.linears.size(), 7u);
  for (const QuantizedLinear& linear : block.linears) {
    EXPECT_EQ(linear.record.contains("fallback"), linear.name.starts_with("mlp")) << linear.name;
  }
}

TEST_F(AwqTest, ClippingTakesEvenlySpacedTokens) {
  // 12 x 96 tokens: every fourth, which is 288 of them.
  QuantizeWorld world(*team_, 5), spaced(*team_, 4);
  NullMonitor monitor;
  for (QuantizeWorld* w : {&world, &spaced}) {
    BlockTask task = w->task();
    PhaseClock clock(task.backend);
    const AwqSettings settings{
        .scheme = {.group_size = 256}, .scale_search = false, .clip_tokens = 250};
    const BlockStatistics statistics = collect_statistics(task, settings, false, clock);
    const Matrix x = inputs_of(*w)[0];
    Matrix sampled(0, x.cols);
    for (std::int64_t t = 0; t < x.rows; t += 4, ++sampled.rows) {
      sampled.values.insert(sampled.values.end(), x.values.begin() + t * x.cols,
                            x.values.begin() + (t + 1) * x.cols);
    }
    const Matrix want = reference::product(reference::transpose(sampled), sampled);
    const Matrix got = to_matrix(statistics.inputs[0].group_grams.at(256), task.backend);
    double largest = 0;
    for (const double v : want.values) largest = std::max(largest, std::abs(v));
    for (std::size_t i = 0; i < want.values.size(); ++i) {
      ASSERT_NEAR(got.values[i], want.values[i], 1e-5 * largest);
    }
  }
}

TEST_F(AwqTest, OptionsAreCheckedAndNamed) {
  EXPECT_EQ(parse_recipe({{"method", "awq"}}).name, "awq-w4g128");
  EXPECT_EQ(parse_recipe({{"method", "awq"}, {"preset", "paper"}}).name, "awq-w4g128");
  EXPECT_EQ(parse_recipe({{"method", "awq"}, {"symmetric", true}, {"clip_search", false}}).name,
            "awq-w4g128-symmetric-no-clip-search");
  EXPECT_THROW(parse_recipe({{"method", "awq"}, {"grid_points", 0}}), RecipeError);
  EXPECT_THROW(parse_recipe({{"method", "awq"}, {"clip_tokens", -1}}), RecipeError);
  EXPECT_THROW(parse_recipe({{"method", "awq"}, {"damping", 0.1}}), RecipeError);
}

}  // namespace
}  // namespace roundhouse
