#include <gtest/gtest.h>

#include "stages/quantize/rtn/rtn.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {
namespace {

class RtnTest : public testing::Test {
 protected:
  QuantizedLinear round(const std::vector<float>& w, std::int64_t rows, std::int64_t cols, int bits,
                        std::int64_t group_size, Grid grid) {
    QuantizedLinear linear =
        unsolved_linear({"w", rows, cols}, {.bits = bits, .group_size = group_size, .grid = grid});
    const Tensor weights = upload_f32(w, rows, cols, *backend_);
    error_ = round_to_nearest({*team_, *team_, *backend_}, linear, weights, {});
    validate(linear);
    return linear;
  }
  static std::vector<int> codes(const QuantizedLinear& linear) {
    const auto values = linear.codes.as<std::uint8_t>();
    return {values.begin(), values.end()};
  }
  static std::vector<int> zeros(const QuantizedLinear& linear) {
    const auto values = linear.zeros.as<std::uint8_t>();
    return {values.begin(), values.end()};
  }
  static std::vector<float> scales(const QuantizedLinear& linear) {
    std::vector<float> values;
    for (const std::uint16_t bits : linear.scales.as<std::uint16_t>()) {
      values.push_back(half_to_float(bits));
    }
    return values;
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<Communicator> team_ = make_local_communicator();
  SolveError error_;
};

using Ints = std::vector<int>;
using Floats = std::vector<float>;

// Two bits, so codes 0..3; the ranges make every scale 1 or -1.
TEST_F(RtnTest, EachGridGivesTheCodesWorkedOutByHand) {
  // lo = -1, hi = 2: s = 3 / 3, z = 1. 0.5 is a tie and goes to the even 0, so code 1.
  const QuantizedLinear gptq = round({-1, 0.5f, 2, 0}, 1, 4, 2, -1, Grid::kAsymGptq);
  EXPECT_EQ(codes(gptq), (Ints{0, 1, 3, 1}));
  EXPECT_EQ(scales(gptq), Floats{1});
  EXPECT_EQ(zeros(gptq), Ints{1});
  EXPECT_EQ(error_.error, 0.125);  // 0.5² / 2
  EXPECT_EQ(error_.norm, 2.625);   // (1 + 0.25 + 4) / 2

  // lo = 1, hi = 4: s = 1, z = rne(-1) clamped to 0. 4 needs code 4 and is clipped.
  const QuantizedLinear awq = round({1, 4}, 1, 2, 2, -1, Grid::kAsymAwq);
  EXPECT_EQ(codes(awq), (Ints{1, 3}));
  EXPECT_EQ(zeros(awq), Ints{0});

  // 0 is forced into the range: lo = 0, hi = 3.
  const QuantizedLinear autoround = round({1, 3}, 1, 2, 2, -1, Grid::kAsymAutoRound);
  EXPECT_EQ(codes(autoround), (Ints{1, 3}));
  EXPECT_EQ(scales(autoround), Floats{1});

  // a = 1.5: s = 3 / 3, z = 2. -1.5 is a tie and goes to -2; 1.5 goes to 2, code 4, clipped to 3.
  const QuantizedLinear symmetric = round({-1.5f, 0.75f, 1.5f}, 1, 3, 2, -1, Grid::kSymGptq);
  EXPECT_EQ(codes(symmetric), (Ints{0, 3, 3}));
  EXPECT_EQ(scales(symmetric), Floats{1});
  EXPECT_EQ(zeros(symmetric), Ints{2});

  // The largest weight is positive, so s = -2 / 2 and it gets code 0, exactly.
  const QuantizedLinear full = round({-1, 2}, 1, 2, 2, -1, Grid::kSymFull);
  EXPECT_EQ(codes(full), (Ints{3, 0}));
  EXPECT_EQ(scales(full), Floats{-1});
}

TEST_F(RtnTest, TheLastGroupMayBeShort) {
  const QuantizedLinear linear = round({-1, 2, 3, 0, 3, -6}, 2, 3, 2, 2, Grid::kAsymGptq);
  EXPECT_EQ(linear.groups(), 2);
  EXPECT_EQ(scales(linear), (Floats{1, 1, 1, 2}));
  EXPECT_EQ(zeros(linear), (Ints{1, 0, 0, 3}));
  EXPECT_EQ(codes(linear), (Ints{0, 3, 3, 0, 3, 0}));
}

TEST_F(RtnTest, AGroupBeyondTheRowIsTheRow) {
  EXPECT_EQ(round({-1, 2}, 1, 2, 2, 128, Grid::kAsymGptq).group_size, 2);
}

TEST_F(RtnTest, RowsDoNotDependOnTheirTile) {
  Random random(3);
  std::vector<float> w(static_cast<std::size_t>(600 * 40));
  for (float& v : w) v = static_cast<float>(random.normal());
  const std::vector<int> all = codes(round(w, 600, 40, 3, 16, Grid::kAsymGptq));
  for (const std::int64_t row : {0, 255, 256, 511, 512, 599}) {
    const auto begin = w.begin() + row * 40;
    const std::vector<int> one = codes(round({begin, begin + 40}, 1, 40, 3, 16, Grid::kAsymGptq));
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + row * 40)) << "row " << row;
  }
}

TEST_F(RtnTest, QuantizesABlockWithoutActivations) {
  QuantizeWorld world(*team_);
  BlockTask task = world.task();
  task.residual = nullptr;
  task.samples = nullptr;
  for (const char* text :
       {R"({"method": "rtn"})", R"({"method": "rtn", "bits": 8, "group_size": -1})",
        R"({"method": "rtn", "bits": 2, "group_size": 100, "clip_search": true})",
        R"({"method": "rtn", "bits": 3, "grid": "S-full"})"}) {
    const auto method = make_method(parse_recipe(nlohmann::json::parse(text)));
    EXPECT_FALSE(method->needs().calibration());
    const QuantizedBlock block = method->quantize(task);
    ASSERT_EQ(block.linears.size(), world.decoder().linears().size());
    for (std::size_t i = 0; i < block.linears.size(); ++i) {
      const QuantizedLinear& linear = block.linears[i];
      EXPECT_NO_THROW(validate(linear)) << text;
      EXPECT_EQ(linear.name, world.decoder().linears()[i].name);
      EXPECT_GT(linear.record.at("error").get<double>(), 0) << text;
      EXPECT_LT(linear.record.at("relative_error").get<double>(), linear.bits == 2 ? 0.5 : 0.2);
    }
    EXPECT_GT(block.record.at("phases").at("solve").get<double>(), 0);
  }
}

TEST_F(RtnTest, TheClipSearchLowersTheError) {
  QuantizeWorld world(*team_);
  const auto error = [&](const char* text) {
    return world.quantize(nlohmann::json::parse(text)).linears[0].record.at("error").get<double>();
  };
  EXPECT_LT(error(R"({"method": "rtn", "bits": 3, "clip_search": true})"),
            error(R"({"method": "rtn", "bits": 3})"));
}

}  // namespace
}  // namespace roundhouse
