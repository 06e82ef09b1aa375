#include "pipeline/schedule/snapshots.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "comm/launcher.h"
#include "pipeline/run/hdf5_store.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

TEST(SnapshotTimingTest, WritesWhenWhatIsLostOutweighsTheWriting) {
  SnapshotTiming timing(4);
  timing.written(1e9, 10);  // 100 MB/s
  // 17 GB take 170 s: due when L T >= 2 x 14400 x 170.
  int blocks = 0;
  while (!timing.due(17e9)) {
    timing.block_done(25, 5);
    ++blocks;
  }
  EXPECT_EQ(blocks, 198);  // 5 n x 25 n >= 4.9e6
  timing.written(17e9, 170);
  EXPECT_FALSE(timing.due(17e9)) << "it starts anew";
}

TEST(SnapshotTimingTest, CheapForwardPassesAndRareInterruptionsWriteLess) {
  const auto blocks = [](double hours, double forward) {
    SnapshotTiming timing(hours);
    timing.written(1e9, 1);
    int count = 0;
    while (count < 100'000 && !timing.due(1e9)) {
      timing.block_done(10, forward);
      ++count;
    }
    return count;
  };
  EXPECT_LT(blocks(1, 5), blocks(16, 5));
  EXPECT_LT(blocks(4, 5), blocks(4, 0.1));
  EXPECT_EQ(blocks(1e-9, 5), 1);
  EXPECT_EQ(blocks(0, 5), 100'000) << "never";
}

class SnapshotsTest : public testing::Test {
 protected:
  // One rank's streams, of this value in every row.
  StreamActivations streams(bool quantized, bool full_precision, std::uint8_t value) {
    const auto make = [&](bool wanted) -> Activations* {
      if (!wanted) return nullptr;
      auto& made = made_.emplace_back(std::make_unique<Activations>(budget_, DType::kU8, 16));
      for (int shard = 0; shard < kShards; ++shard) {
        made->reserve(shard, 4);
        std::ranges::fill(made->bytes(shard), std::byte(value));
      }
      return made.get();
    };
    return {.quantized = make(quantized), .full_precision = make(full_precision)};
  }
  Snapshots of(const Recipe& recipe) {
    return Snapshots(recipe, recipes_, {0, kShards}, store_, monitor_);
  }
  int usable(const Recipe& recipe, int first_missing) {
    return find_snapshot(recipe, first_missing, kShards, store_, *world_);
  }

  static constexpr int kShards = 2;
  const std::vector<Recipe> recipes_ = {parse_recipe({{"method", "gptq"}}),
                                        parse_recipe({{"method", "awq"}}),
                                        parse_recipe({{"method", "signround"}, {"iterations", 3}})};
  const Recipe &gptq_ = recipes_[0], &awq_ = recipes_[1], &signround_ = recipes_[2];
  std::unique_ptr<Communicator> world_ = make_local_communicator();
  TemporaryFolder folder_;
  ActivationBudget budget_{std::size_t{1} << 20, folder_.path()};
  std::vector<std::unique_ptr<Activations>> made_;
  NullMonitor monitor_;
  Hdf5Store store_{folder_.path() / "run"};
};

TEST_F(SnapshotsTest, TheFullPrecisionStreamIsStoredOnce) {
  Snapshots awq = of(awq_), signround = of(signround_), gptq = of(gptq_);
  awq.write(3, streams(false, true, 7), *world_);
  signround.write(3, streams(true, true, 7), *world_);
  gptq.write(3, streams(true, false, 5), *world_);
  EXPECT_EQ(store_.keys("activations").size(), 2u);
  for (const Recipe& recipe : recipes_) {
    EXPECT_EQ(usable(recipe, 5), 3);
    EXPECT_EQ(usable(recipe, 2), 0) << "behind the first missing block";
  }
  StreamActivations into = streams(true, true, 0);
  signround.load(3, into);
  EXPECT_EQ(into.full_precision->bytes(1).front(), std::byte(7));
  // Those who use it no more leave it to the others.
  signround.remove_all(kShards);
  EXPECT_EQ(store_.keys("activations").size(), 2u);
  gptq.remove_all(kShards);
  awq.write(4, streams(false, true, 7), *world_);
  EXPECT_EQ(store_.keys("activations"),
            (std::vector<std::string>{shared_snapshot_key("default", 4, 0),
                                      shared_snapshot_key("default", 4, 1)}));
  awq.remove_all(kShards);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path() / "run")) << "no folder is left behind";
}

TEST_F(SnapshotsTest, AMethodOfOneStreamUsesThatOfAnother) {
  of(signround_).write(3, streams(true, true, 7), *world_);
  EXPECT_EQ(usable(awq_, 5), 3);
  EXPECT_EQ(usable(gptq_, 5), 0) << "the quantized stream is the recipe's own";
  of(signround_).remove_all(kShards);
  EXPECT_EQ(store_.keys("activations").size(), 2u) << "the other has begun to use it";
  of(awq_).remove_all(kShards);
  EXPECT_TRUE(store_.keys("activations").empty());
}

// The streams of two calibration sets are two, at the same place too.
TEST_F(SnapshotsTest, EachCalibrationSetHasAStreamOfItsOwn) {
  std::vector<Recipe> recipes = recipes_;
  recipes[1].calibration = "awq";
  const Recipe &awq = recipes[1], &signround = recipes[2];
  Snapshots of_awq(awq, recipes, {0, kShards}, store_, monitor_);
  Snapshots of_signround(signround, recipes, {0, kShards}, store_, monitor_);
  of_signround.write(3, streams(true, true, 7), *world_);
  EXPECT_EQ(usable(awq, 5), 0) << "that of the other set is none";
  of_awq.write(3, streams(false, true, 9), *world_);
  StreamActivations into = streams(true, true, 0);
  of_signround.load(3, into);
  EXPECT_EQ(into.full_precision->bytes(0).front(), std::byte(7));
  StreamActivations other = streams(false, true, 0);
  of_awq.load(3, other);
  EXPECT_EQ(other.full_precision->bytes(0).front(), std::byte(9));
  of_signround.remove_all(kShards);
  EXPECT_EQ(store_.keys("activations"),
            (std::vector<std::string>{shared_snapshot_key("awq", 3, 0),
                                      shared_snapshot_key("awq", 3, 1)}));
  of_awq.remove_all(kShards);
  EXPECT_TRUE(store_.keys("activations").empty());
}

TEST_F(SnapshotsTest, AnIncompleteOneIsNotUsed) {
  Snapshots gptq = of(gptq_);
  gptq.write(2, streams(true, false, 1), *world_);
  Record other = *store_.load(snapshot_key(gptq_.name, 2, 1));
  Snapshots(gptq_, recipes_, {0, 1}, store_, monitor_).write(3, streams(true, false, 1), *world_);
  store_.commit(snapshot_key(gptq_.name, 2, 0), other);  // of a job that ended between the two
  EXPECT_EQ(usable(gptq_, 5), 2);
}

TEST_F(SnapshotsTest, ThoseOfRecipesThatWereTakenOutGo) {
  of(awq_).write(3, streams(false, true, 7), *world_);
  of(gptq_).write(4, streams(true, false, 7), *world_);
  Record block;
  store_.commit(block_key(awq_.name, 0), block);
  remove_unused_snapshots({gptq_.name}, store_);
  EXPECT_EQ(store_.keys("recipes"),
            (std::vector<std::string>{block_key(awq_.name, 0), snapshot_key(gptq_.name, 4, 0),
                                      snapshot_key(gptq_.name, 4, 1)}));
  EXPECT_TRUE(store_.keys("activations").empty());
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "run" / "activations"));
}

}  // namespace
}  // namespace roundhouse
