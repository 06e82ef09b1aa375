#include "stages/quantize/squeezellm/kmeans.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/random.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kRows = 6, kCols = 200;

class ClusterTileTest : public testing::Test {
 protected:
  void SetUp() override {
    Random random(1);
    for (std::int64_t i = 0; i < kRows * kCols; ++i) {
      w_.push_back(static_cast<float>(0.02 * random.normal()));
      sensitivity_.push_back(static_cast<float>(random.uniform()));
    }
    w_[5] = 0.5f;  // an outlier
    sensitivity_[kCols + 7] = 9.0f;
  }
  TableTile cluster(const TableOptions& options) {
    return cluster_tile({w_.data(), DType::kF32, kRows, kCols, kCols},
                        {sensitivity_.data(), DType::kF32, kRows, kCols, kCols}, options,
                        *backend_);
  }
  float dense(const TableTile& tile, std::int64_t at) const {
    const auto entries = tile.tables.shape()[1];
    const std::uint8_t code = tile.codes.as<std::uint8_t>()[at];
    return half_to_float(tile.tables.as<std::uint16_t>()[at / kCols * entries + code]);
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 2});
  std::vector<float> w_, sensitivity_;
};

TEST_F(ClusterTileTest, WithoutASparsePartEveryWeightIsInTheTables) {
  const TableTile tile = cluster({.bits = 3});
  EXPECT_EQ(tile.starts, std::vector<std::int32_t>(kRows + 1, 0));
  EXPECT_TRUE(tile.values.empty());
  double error = 0.0;
  for (std::int64_t i = 0; i < kCols; ++i) {
    const double d = static_cast<double>(w_[i] - dense(tile, i));
    error += static_cast<double>(sensitivity_[i]) * d * d;
  }
  EXPECT_NEAR(tile.rows[0].error, error, 1e-6 * error);
}

TEST_F(ClusterTileTest, KeepsOutliersAndSensitiveWeightsBesideAndTablesDoNotSeeThem) {
  const TableTile plain = cluster({.bits = 3});
  const TableTile tile = cluster({.bits = 3, .sensitive_above = 8.0f, .large_from = 0.4f});
  EXPECT_EQ(tile.starts, (std::vector<std::int32_t>{0, 1, 2, 2, 2, 2, 2}));
  EXPECT_EQ(tile.columns, (std::vector<std::int32_t>{5, 7}));
  EXPECT_EQ(dense(tile, 5) + tile.values[0], w_[5]);
  EXPECT_FLOAT_EQ(dense(tile, kCols + 7) + tile.values[1], w_[kCols + 7]);
  EXPECT_LT(std::abs(dense(tile, 5)), 0.02f);  // the value nearest 0
  EXPECT_LT(tile.rows[0].error, 0.8 * plain.rows[0].error);
  EXPECT_EQ(tile.rows[3].error, plain.rows[3].error);
  EXPECT_EQ(w_[5], 0.5f);  // its input is as it was
}

TEST_F(ClusterTileTest, ASparsePartHidesNothingThatIsNotFinite) {
  const TableOptions options{.bits = 2, .sensitive_above = 8.0f, .large_from = 0.4f};
  const auto message = [&] {
    try {
      (void)cluster(options);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(message(), "no error");
  sensitivity_[2 * kCols + 1] = INFINITY;
  EXPECT_EQ(message(), "row 2: a sensitivity is not finite");
  w_[kCols] = -INFINITY;
  EXPECT_EQ(message(), "row 1: a weight is not finite");
}

TEST_F(ClusterTileTest, ARowOfWhichNothingIsLeftHasUnitWeights) {
  const TableTile tile = cluster({.bits = 2, .large_from = 0.0f});
  EXPECT_EQ(tile.columns.size(), static_cast<std::size_t>(kRows * kCols));
  EXPECT_EQ(tile.rows[0].unit_weights, 1);
  for (std::int64_t i = 0; i < kRows * kCols; ++i) {
    EXPECT_EQ(dense(tile, i) + tile.values[i], w_[i]);
  }
}

}  // namespace
}  // namespace roundhouse
