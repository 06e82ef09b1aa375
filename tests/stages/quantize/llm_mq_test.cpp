// LLM-MQ: its recipes, the sums over a block's gradients, the bits that follow, and the blocks that are made at them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "stages/quantize/awq/fold.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

using nlohmann::json;

json recipe_of(json options = json::object()) {
  options["method"] = "llm-mq";
  return options;
}
std::string name_of_recipe(const json& options) { return parse_recipe(recipe_of(options)).name; }

// "key: what" of the RecipeError that parsing throws.
std::string error_of(const json& options) {
  try {
    (void)parse_recipe(recipe_of(options));
  } catch (const RecipeError& error) {
    return error.key + ": " + error.what;
  }
  return "none";
}

TEST(LlmMqRecipeTest, NamesSayAverageAndGroup) {
  EXPECT_EQ(name_of_recipe({{"bits", 2.6}, {"group_size", 128}}), "llm-mq-w2.6g128");
  EXPECT_EQ(name_of_recipe({{"bits", 3}}), "llm-mq-w3g128");
  EXPECT_EQ(name_of_recipe({{"bits", 3.0}, {"group_size", -1}}), "llm-mq-w3");
  EXPECT_EQ(name_of_recipe({{"bits", 2.2},
                            {"score", "fisher"},
                            {"tie", "none"},
                            {"outliers", 0},
                            {"symmetric", true},
                            {"clip_search", false}}),
            "llm-mq-w2.2g128-symmetric-score-fisher-tie-none-outliers-0.0-no-clip-search");
}

TEST(LlmMqRecipeTest, ErrorsNameTheKey) {
  const std::string bits = error_of({{"bits", 1.9}});
  EXPECT_THAT(bits, testing::StartsWith("bits: ")) << bits;
  EXPECT_THAT(bits, testing::HasSubstr("2")) << bits;
  EXPECT_EQ(error_of({{"bits", 4.1}}), bits);
  EXPECT_EQ(error_of({{"bits", "many"}}), bits);
  EXPECT_EQ(error_of({{"bits", 2.0}}), "none");
  EXPECT_EQ(error_of({{"bits", 4.0}}), "none");
  EXPECT_EQ(error_of({{"score", "hessian"}}),
            "score: must be one of first-order, absolute, fisher");
  EXPECT_EQ(error_of({{"tie", "all"}}), "tie: must be one of fused, none");
  EXPECT_EQ(error_of({{"outliers", 51}}), "outliers: must be a number from 0.0 to 50.0");
  EXPECT_EQ(error_of({{"outliers", -0.1}}), "outliers: must be a number from 0.0 to 50.0");
  EXPECT_EQ(error_of({{"group_size", 0}}),
            "group_size: must be at least 1, or -1 for the whole row");
  EXPECT_EQ(error_of({{"exact", true}}), "exact: is not an option of this method");
}

TEST(LlmMqRecipeTest, SaysWhatItNeedsAndWhatLinearsMayBecome) {
  const Recipe recipe = parse_recipe(recipe_of({{"bits", 2.6}}));
  EXPECT_EQ(parse_recipe(resolved(recipe)).options, recipe.options);
  EXPECT_EQ(recipe.options.at("clip_search"), true);
  EXPECT_TRUE(recipe.needs.decision);
  EXPECT_FALSE(recipe.needs.makes_blocks_of_gradients());
  EXPECT_TRUE(recipe.needs.gradients->sums.sum);
  EXPECT_TRUE(recipe.needs.gradients->sums.squares);
  EXPECT_TRUE(recipe.one_scheme_an_input);
  EXPECT_FALSE(parse_recipe(recipe_of({{"tie", "none"}})).one_scheme_an_input);
  ASSERT_EQ(recipe.schemes.size(), 3);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(recipe.schemes[i].bits, static_cast<int>(i) + 2);
    EXPECT_EQ(recipe.schemes[i].sparse, i == 0) << "of 2 bits some weights stand apart";
  }
  for (const LinearScheme& scheme : parse_recipe(recipe_of({{"outliers", 0}})).schemes) {
    EXPECT_FALSE(scheme.sparse);
  }
}

// The sums of a block's gradients, made up, and what they are by plain arithmetic.
class LlmMqStatisticsTest : public testing::Test {
 protected:
  static constexpr std::int64_t kGroup = 64;

  LlmMqStatisticsTest() {
    Random random(3);
    for (const LinearSpec& spec : world_.decoder().linears()) {
      const auto size = static_cast<std::size_t>(spec.rows * spec.cols);
      std::vector<float>& sum = sums_.emplace_back(size);
      std::vector<float>& squares = squares_.emplace_back(size);
      for (float& g : sum) g = static_cast<float>(1e-3 * random.normal());
      for (float& f : squares) f = static_cast<float>(1e-6 * random.uniform());
      sum_tensors_.push_back(upload_f32(sum, spec.rows, spec.cols, world_.backend()));
      square_tensors_.push_back(upload_f32(squares, spec.rows, spec.cols, world_.backend()));
    }
  }

  SummedGradients gradients() {
    SummedGradients all;
    for (std::size_t i = 0; i < sums_.size(); ++i) {
      std::vector<BlockGradients::Tile>& tiles = all.emplace_back();
      const std::int64_t rows = sum_tensors_[i].rows();
      for (std::int64_t first = 0; first < rows; first += kTileRows) {
        const std::int64_t end = std::min(rows, first + kTileRows);
        tiles.push_back({.first = first,
                         .sum = std::as_const(sum_tensors_[i]).view().row_range(first, end),
                         .squares = std::as_const(square_tensors_[i]).view().row_range(first, end),
                         .sum_memory = {},
                         .squares_memory = {}});
      }
    }
    return all;
  }

  json statistics(const json& recipe) {
    const SummedGradients sums = gradients();
    BlockTask task = world_.task();
    task.gradients = &sums;
    return make_method(parse_recipe(recipe))->statistics(task);
  }

  // Where |w| is among the largest `percent`.
  static float large_from(std::vector<float> w, double percent) {
    const auto rank = static_cast<std::size_t>(static_cast<double>(w.size()) * percent / 100);
    if (rank == 0) return INFINITY;
    for (float& value : w) value = std::abs(value);
    std::ranges::sort(w, std::greater());
    return w[rank - 1];
  }

  struct Sums {
    double first_order = 0, absolute = 0, fisher = 0;
  };
  // By the definitions, in double but for what is stored: scales in float16.
  Sums plain(std::size_t linear, int bits, double outliers) {
    const Tensor& weights = world_.weights().linears[linear];
    const std::vector<float> w = download_f32(weights, world_.backend());
    const std::int64_t cols = weights.cols();
    const float from = bits == 2 ? large_from(w, outliers) : INFINITY;
    const double qmax = (1 << bits) - 1;
    Sums sums;
    for (std::size_t begin = 0; begin < w.size(); begin += kGroup) {
      const std::size_t end =
          std::min(begin + kGroup,
                   (begin / static_cast<std::size_t>(cols) + 1) * static_cast<std::size_t>(cols));
      double lo = INFINITY, hi = -INFINITY;
      for (std::size_t i = begin; i < end; ++i) {
        const double value = std::abs(w[i]) >= from ? 0.0 : static_cast<double>(w[i]);
        lo = std::min(lo, value);
        hi = std::max(hi, value);
      }
      const double scale =
          half_to_float(float_to_half(static_cast<float>(std::max(hi - lo, 1e-5) / qmax)));
      const double zero = std::clamp(-std::nearbyint(lo / scale), 0.0, qmax);
      for (std::size_t i = begin; i < end; ++i) {
        if (std::abs(w[i]) >= from) continue;  // kept as it is
        const double value = static_cast<double>(w[i]);
        const double code = std::clamp(std::nearbyint(value / scale) + zero, 0.0, qmax);
        const double d = value - scale * (code - zero);
        const double product = static_cast<double>(sums_[linear][i]) * d;
        sums.first_order += product;
        sums.absolute += std::abs(product);
        sums.fisher += static_cast<double>(squares_[linear][i]) * d * d;
      }
    }
    return sums;
  }

  std::unique_ptr<Communicator> team_ = make_local_communicator();
  QuantizeWorld world_{*team_};
  std::vector<std::vector<float>> sums_, squares_;
  std::vector<Tensor> sum_tensors_, square_tensors_;
};

TEST_F(LlmMqStatisticsTest, AreThreeSumsOfEachLinearAtEachWidth) {
  for (const double outliers : {0.5, 0.0}) {
    const json statistics =
        this->statistics(recipe_of({{"group_size", kGroup}, {"outliers", outliers}}));
    const json& linears = statistics.at("linears");
    ASSERT_EQ(linears.size(), world_.decoder().linears().size());
    for (std::size_t i = 0; i < linears.size(); ++i) {
      EXPECT_EQ(linears[i].at("name"), world_.decoder().linears()[i].name);
      for (std::size_t b = 0; b < 3; ++b) {
        const Sums want = plain(i, static_cast<int>(b) + 2, outliers);
        const std::string what =
            world_.decoder().linears()[i].name + " at " + std::to_string(b + 2);
        // A weight whose quotient rounds the other way in float32 differs by a step; there are few.
        EXPECT_NEAR(linears[i].at("first_order")[b].get<double>(), want.first_order,
                    2e-5 * want.absolute)
            << what;
        EXPECT_NEAR(linears[i].at("absolute")[b].get<double>(), want.absolute, 2e-5 * want.absolute)
            << what;
        EXPECT_NEAR(linears[i].at("fisher")[b].get<double>(), want.fisher, 2e-5 * want.fisher)
            << what;
      }
    }
  }
}

TEST_F(LlmMqStatisticsTest, AreTheSameForRecipesThatRoundAlike) {
  const auto settings = [](const json& options) {
    return make_method(parse_recipe(recipe_of(options)))->statistics_settings();
  };
  const std::string plain = settings({{"bits", 2.6}});
  EXPECT_EQ(settings({{"bits", 3.4}, {"score", "fisher"}, {"tie", "none"}}), plain);
  for (const json& other :
       {json{{"group_size", 64}}, json{{"symmetric", true}}, json{{"outliers", 0}}})
    EXPECT_NE(settings(other), plain) << other;
}

// What is decided from statistics that are made up.
class LlmMqDecisionTest : public testing::Test {
 protected:
  static constexpr int kBlocks = 6;

  LlmMqDecisionTest() {
    Random random(11);
    for (int block = 0; block < kBlocks; ++block) {
      json linears = json::array();
      for (const LinearSpec& spec : world_.decoder().linears()) {
        json& linear = linears.emplace_back(json{{"name", spec.name}});
        for (const char* score : {"first_order", "absolute", "fisher"}) {
          // Falls with the bits, as most do; first-order sums have signs.
          const double size = random.uniform() * static_cast<double>(spec.cols);
          const double sign = score[1] == 'i' && random.below(2) == 1 ? -1.0 : 1.0;
          linear[score] = {sign * size, sign * size / 4, sign * size / 16};
        }
      }
      statistics_.push_back({{"linears", linears}});
    }
  }

  json decide(const json& options) {
    world_.monitor().events.clear();
    ModelTask task{.backend = world_.backend(),
                   .world = *team_,
                   .model = world_.model(),
                   .decoder = world_.decoder(),
                   .samples = nullptr,
                   .monitor = world_.monitor(),
                   .statistics = statistics_};
    const Recipe recipe = parse_recipe(recipe_of(options));
    task.overrides = recipe.overrides;
    const auto method = make_method(recipe);
    method->check(world_.decoder(), static_cast<int>(kBlocks), recipe.overrides);
    return method->decide(task);
  }
  double weights_of(std::size_t linear) const {
    const LinearSpec& spec = world_.decoder().linears()[linear];
    return static_cast<double>(spec.rows * spec.cols);
  }
  double weights() const {
    double sum = 0;
    for (std::size_t i = 0; i < world_.decoder().linears().size(); ++i) sum += weights_of(i);
    return sum * kBlocks;
  }
  double mean_bits(const json& decision, bool grids = false, double group = 128) const {
    double memory = 0;
    for (const json& block : decision.at("bits")) {
      for (std::size_t i = 0; i < block.size(); ++i) {
        const double bits = block[i].get<double>();
        memory += weights_of(i) * (bits + (grids ? (16 + bits) / group : 0));
      }
    }
    return memory / weights();
  }
  double sensitivity(const json& decision, const char* score) const {
    double sum = 0;
    for (std::size_t block = 0; block < kBlocks; ++block) {
      const json& bits = decision.at("bits")[block];
      for (std::size_t i = 0; i < bits.size(); ++i) {
        sum += std::abs(
            statistics_[block]["linears"][i][score][bits[i].get<std::size_t>() - 2].get<double>());
      }
    }
    return sum;
  }

  std::unique_ptr<Communicator> team_ = make_local_communicator();
  QuantizeWorld world_{*team_};
  std::vector<json> statistics_;
};

TEST_F(LlmMqDecisionTest, KeepsTheAverageAndSaysBothAccountings) {
  for (const double average : {2.0, 2.2, 2.6, 3.0, 3.7, 4.0}) {
    const json decision = decide({{"bits", average}, {"tie", "none"}});
    EXPECT_NEAR(decision.at("average").get<double>(), mean_bits(decision), 1e-12);
    EXPECT_NEAR(decision.at("average_with_grids").get<double>(), mean_bits(decision, true), 1e-12);
    EXPECT_LE(mean_bits(decision), average + 1e-9);
    EXPECT_GT(mean_bits(decision), average - 0.1)
        << "the budget is used where more bits are better";
    EXPECT_NEAR(decision.at("sensitivity").get<double>(), sensitivity(decision, "first_order"),
                1e-9 * sensitivity(decision, "first_order"));
    const json& event = world_.monitor().events.back();
    EXPECT_EQ(event.at("event"), "bits");
    EXPECT_EQ(event.at("average"), decision.at("average"));
    EXPECT_EQ(event.at("average_by_score"), decision.at("average"));
    EXPECT_EQ(event.at("average_with_grids"), decision.at("average_with_grids"));
    EXPECT_EQ(event.at("bits"), decision.at("bits"));
  }
  EXPECT_EQ(mean_bits(decide({{"bits", 2.0}})), 2.0);
  EXPECT_EQ(mean_bits(decide({{"bits", 4.0}})), 4.0);
}

// A sum with signs can be larger for more bits. What is left then goes to where the sum without signs falls most.
TEST_F(LlmMqDecisionTest, NothingStaysUnspentWhereMoreBitsCountAsWorse) {
  for (json& block : statistics_) {
    for (json& linear : block["linears"]) linear["first_order"] = {1.0, 2.0, 3.0};
  }
  const json all = decide({{"bits", 4.0}, {"tie", "none"}});
  EXPECT_EQ(mean_bits(all), 4.0);
  const json& event = world_.monitor().events.back();
  EXPECT_EQ(event.at("average_by_score"), 2.0);
  EXPECT_EQ(event.at("average"), 4.0);
  EXPECT_EQ(all.at("sensitivity"), static_cast<double>(3 * kBlocks * all.at("bits")[0].size()));
  EXPECT_EQ(decide({{"bits", 3.0}, {"tie", "none"}}).at("bits"),
            decide({{"bits", 3.0}, {"score", "absolute"}, {"tie", "none"}}).at("bits"));
  // What the score has chosen stays: here 4 bits for one linear, which have no use by the other sum.
  json& chosen = statistics_[0]["linears"][0];
  chosen["first_order"] = {100.0, 50.0, 1.0};
  chosen["absolute"] = {0.0, 0.0, 0.0};
  EXPECT_EQ(decide({{"bits", 3.0}, {"tie", "none"}}).at("bits")[0][0], 4);
}

// Those of a width that is asked for have no choice and are in the average; those that are skipped are in neither.
TEST_F(LlmMqDecisionTest, OverriddenLinearsAreFixed) {
  const json overrides = json::parse(
      R"([{"match": "*.down_proj", "bits": 4}, {"match": "model.layers.0.*", "skip": true}])");
  const json decision = decide({{"bits", 3.0}, {"overrides", overrides}});
  double memory = 0, counted = 0;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    for (std::size_t i = 0; i < world_.decoder().linears().size(); ++i) {
      const int bits = decision.at("bits")[block][i].get<int>();
      if (block == 0) {
        EXPECT_EQ(bits, 16);
        continue;
      }
      EXPECT_LE(bits, 4);
      EXPECT_GE(bits, world_.decoder().linears()[i].name == "mlp.down_proj" ? 4 : 2);
      memory += weights_of(i) * bits;
      counted += weights_of(i);
    }
  }
  EXPECT_NEAR(decision.at("average").get<double>(), memory / counted, 1e-12);
  EXPECT_LE(memory / counted, 3.0 + 1e-9);
  EXPECT_GT(memory / counted, 2.8);
  try {
    decide({{"bits", 2.0}, {"overrides", overrides}});
    ADD_FAILURE() << "an average that the overrides exceed";
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("an average of 2 bits is out of reach"));
  }
}

TEST_F(LlmMqDecisionTest, EachScoreChoosesByItsOwnSums) {
  for (const char* score : {"first-order", "absolute", "fisher"}) {
    std::string key = score;
    std::ranges::replace(key, '-', '_');
    const json mine = decide({{"bits", 3.0}, {"score", score}, {"tie", "none"}});
    for (const char* other : {"first-order", "absolute", "fisher"}) {
      if (std::string(score) == other) continue;
      const json theirs = decide({{"bits", 3.0}, {"score", other}, {"tie", "none"}});
      EXPECT_NE(mine.at("bits"), theirs.at("bits"));
      EXPECT_LT(sensitivity(mine, key.c_str()), sensitivity(theirs, key.c_str()));
    }
  }
}

TEST_F(LlmMqDecisionTest, TiedLinearsHaveTheSameBits) {
  const json free = decide({{"bits", 2.8}, {"tie", "none"}}), tied = decide({{"bits", 2.8}});
  bool differs = false;
  for (std::size_t block = 0; block < kBlocks; ++block) {
    for (const SharedInput& group : world_.decoder().shared_inputs()) {
      for (const int i : group.linears) {
        const auto at = [&](const json& decision, int linear) {
          return decision.at("bits")[block][linear].get<int>();
        };
        EXPECT_EQ(at(tied, i), at(tied, group.linears.front()));
        differs = differs || at(free, i) != at(free, group.linears.front());
      }
    }
  }
  EXPECT_TRUE(differs) << "without ties they need not";
  EXPECT_LT(sensitivity(free, "first_order"), sensitivity(tied, "first_order"));
}

TEST_F(LlmMqDecisionTest, ASensitivityThatIsNotFiniteIsAnErrorThatNamesTheLinear) {
  statistics_[4]["linears"][2]["first_order"][1] = nullptr;  // as JSON has it
  try {
    (void)decide({{"bits", 3.0}});
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("block 4, " + world_.decoder().linears()[2].name));
    EXPECT_THAT(error.what(), testing::HasSubstr("3 bits"));
  }
  EXPECT_NO_THROW((void)decide({{"bits", 3.0}, {"score", "absolute"}}));
}

// Blocks at bits that are given.
class LlmMqBlockTest : public testing::Test {
 protected:
  // The first `attention` linears (q, k, v, o) have these bits, the others those of `mlp`.
  QuantizedBlock quantize(const json& options, int attention, int mlp) {
    QuantizeWorld world(*team_);
    const json decision = {{"bits", {{attention, attention, attention, attention, mlp, mlp, mlp}}}};
    const BlockTask site = world.task();
    BlockTask task{site,
                   site.checkpoint,
                   site.weights,
                   site.residual,
                   site.original,
                   site.budget,
                   site.saved_activation_bytes,
                   decision};
    return make_method(parse_recipe(recipe_of(options)))->quantize(task);
  }
  QuantizedBlock awq(int bits) {
    QuantizeWorld world(*team_);
    return world.quantize(
        {{"method", "awq"}, {"bits", bits}, {"group_size", 64}, {"grid_points", 4}});
  }
  static void expect_same(const QuantizedLinear& got, const QuantizedLinear& want) {
    EXPECT_EQ(got.bits, want.bits);
    EXPECT_TRUE(std::ranges::equal(got.codes.bytes(), want.codes.bytes())) << got.name;
    EXPECT_TRUE(std::ranges::equal(got.scales.bytes(), want.scales.bytes())) << got.name;
    EXPECT_TRUE(std::ranges::equal(got.zeros.bytes(), want.zeros.bytes())) << got.name;
    EXPECT_TRUE(got.sparse.empty());
  }

  std::unique_ptr<Communicator> team_ = make_local_communicator();
};

// Attention and MLP share no scales: each is what AWQ makes of it alone at that width.
TEST_F(LlmMqBlockTest, EachLinearIsWhatAwqMakesOfItAtItsWidth) {
  const QuantizedBlock mixed = quantize({{"group_size", 64}, {"outliers", 0}, {"grid_points", 4}},
                                        /*attention=*/4, /*mlp=*/3);
  const QuantizedBlock four = awq(4), three = awq(3);
  for (std::size_t i = 0; i < mixed.linears.size(); ++i) {
    expect_same(mixed.linears[i], i < 4 ? four.linears[i] : three.linears[i]);
  }
  const QuantizedBlock two =
      quantize({{"group_size", 64}, {"outliers", 0}, {"grid_points", 4}}, 2, 2);
  const QuantizedBlock awq_two = awq(2);
  for (std::size_t i = 0; i < two.linears.size(); ++i)
    expect_same(two.linears[i], awq_two.linears[i]);
}

TEST_F(LlmMqBlockTest, TheLargestWeightsOfTwoBitLinearsStandApart) {
  const QuantizedBlock block = quantize({{"group_size", 64}, {"scale_search", false}}, 2, 3);
  const QuantizedBlock without =
      quantize({{"group_size", 64}, {"scale_search", false}, {"outliers", 0}}, 2, 3);
  QuantizeWorld world(*team_);
  for (std::size_t i = 0; i < block.linears.size(); ++i) {
    const QuantizedLinear& linear = block.linears[i];
    if (i >= 4) {
      expect_same(linear, without.linears[i]);
      continue;
    }
    const std::vector<float> w = download_f32(world.weights().linears[i], world.backend());
    std::vector<float> magnitudes = w;
    for (float& value : magnitudes) value = std::abs(value);
    std::ranges::sort(magnitudes, std::greater());
    const auto rank = static_cast<std::size_t>(0.005 * static_cast<double>(w.size()));
    const float from = magnitudes[rank - 1];
    const auto wanted = std::ranges::count_if(w, [&](float v) { return std::abs(v) >= from; });
    EXPECT_EQ(linear.sparse.entries(), wanted) << linear.name;
    EXPECT_EQ(linear.record.at("sparse_entries"), wanted);
    const auto offsets = linear.sparse.offsets.as<std::int32_t>();
    const auto columns = linear.sparse.columns.as<std::int32_t>();
    DequantizedRows rows(linear);
    for (std::int64_t row = 0; row < linear.rows; ++row) {
      const auto values = rows.values(row);
      for (auto k = offsets[row]; k < offsets[static_cast<std::size_t>(row) + 1]; ++k) {
        const auto column = static_cast<std::size_t>(columns[k]);
        const float value = w[static_cast<std::size_t>(row * linear.cols) + column];
        EXPECT_GE(std::abs(value), from);
        EXPECT_NEAR(values[column], value, std::abs(value) / 500) << "it is itself again";
      }
    }
    EXPECT_LT(linear.record.at("error").get<double>(),
              without.linears[i].record.at("error").get<double>());
  }
}

}  // namespace
}  // namespace roundhouse
