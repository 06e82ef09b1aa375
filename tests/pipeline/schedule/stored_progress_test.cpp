// What a method has learned of a block that was cut off: the next team, of whatever size, goes on from there, and ends with the bits of
// one that nothing happened to.
#include "pipeline/schedule/stored_progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "pipeline/run/hdf5_store.h"
#include "tests/comm/shared_folder.h"
#include "tests/stages/same_results.h"

namespace roundhouse {
namespace {

const nlohmann::json kRecipe = {
    {"method", "signround"}, {"bits", 2}, {"iterations", 6}, {"batch_size", 4}};
constexpr const char* kName = "learned";
constexpr double kAlwaysInterrupted = 1e-12;  // hours: written after each step

struct CutOff {};

// Ends every rank of the team after so many steps were written.
class CutOffAfter final : public BlockProgress {
 public:
  CutOffAfter(BlockProgress& progress, int writes) : progress_(progress), writes_(writes) {}
  std::optional<int> newest(const std::vector<std::string>& parts) override {
    return progress_.newest(parts);
  }
  Record load(int step, const std::string& part) override { return progress_.load(step, part); }
  bool due(double bytes) override { return progress_.due(bytes); }
  void write(int step, const std::vector<std::string>& mine,
             const std::function<Record(std::size_t)>& make) override {
    progress_.write(step, mine, make);
    if (--writes_ == 0) throw CutOff();
  }

 private:
  BlockProgress& progress_;
  int writes_;
};

class StoredProgressTest : public testing::Test {
 protected:
  // A team's work on the block with what is in the folder.
  struct Work {
    explicit Work(Communicator& team_, const std::filesystem::path& folder,
                  const std::string& made_of = "a model", double hours = kAlwaysInterrupted)
        : team(team_),
          store(folder),
          timing(hours),
          world(team),
          progress(kName, 0, store, team, world.monitor(), timing, [made_of] {
            return nlohmann::json{{"made_of", made_of}};
          }) {}
    void cut_off_after(int writes) {
      CutOffAfter cut(progress, writes);
      EXPECT_THROW(world.quantize(kRecipe, &cut), CutOff);
      team.barrier();
    }
    // Hashes at rank 0; where it went on is in `began_at`.
    std::vector<std::string> finish() {
      const QuantizedBlock block = world.quantize(kRecipe, &progress);
      std::vector<std::string> hashes;
      for (const QuantizedLinear& linear : block.linears) hashes.push_back(hash_of(linear));
      nlohmann::json record = block.record;
      record.erase("phases");
      hashes.push_back(record.dump());
      for (const nlohmann::json& event : world.monitor().events) {
        if (event.at("event") == "block resumed") began_at = event.at("step");
      }
      team.barrier();
      return hashes;
    }

    Communicator& team;
    Hdf5Store store;
    SnapshotTiming timing;
    QuantizeWorld world;
    StoredProgress progress;
    int began_at = 0;
  };

  static std::vector<std::string> undisturbed() {
    const auto alone = make_local_communicator();
    const TemporaryFolder folder;
    return Work(*alone, folder.path(), "a model", 0).finish();
  }
  static std::filesystem::path folder_of(const std::filesystem::path& run) {
    return run / "recipes" / kName / "progress" / "block-0000";
  }
};

TEST_F(StoredProgressTest, TheSameTeamGoesOnWhereItWasCutOff) {
  Communicator& team = test_world();
  const SharedFolder folder(team);
  Work(team, folder.path()).cut_off_after(3);
  Work again(team, folder.path());
  const auto got = again.finish();
  if (team.rank() != 0) return;
  EXPECT_EQ(again.began_at, 3);
  EXPECT_EQ(got, undisturbed());
}

TEST_F(StoredProgressTest, ATeamOfAnotherSizeGoesOn) {
  Communicator& team = test_world();
  const auto alone = make_local_communicator();
  const SharedFolder folder(team);
  Work(team, folder.path()).cut_off_after(2);
  if (team.rank() == 0) Work(*alone, folder.path()).cut_off_after(2);  // from step 2 to 4, by one
  team.barrier();
  Work again(team, folder.path());
  const auto got = again.finish();
  if (team.rank() != 0) return;
  EXPECT_EQ(again.began_at, 4);
  EXPECT_EQ(got, undisturbed());
}

TEST_F(StoredProgressTest, OnlyTheLastStepIsKept) {
  Communicator& team = test_world();
  const SharedFolder folder(team);
  Work work(team, folder.path());
  work.cut_off_after(4);
  std::vector<std::string> steps;
  for (const auto& entry : std::filesystem::directory_iterator(folder_of(folder.path())))
    steps.push_back(entry.path().filename());
  EXPECT_THAT(steps, testing::ElementsAre("step-000004"));
  team.barrier();
  if (team.rank() == 0) remove_progress(kName, 0, work.store);
  team.barrier();
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "recipes"));
}

TEST_F(StoredProgressTest, WhatIsDamagedOrOfAnotherModelIsNotUsed) {
  Communicator& team = test_world();
  const SharedFolder folder(team);
  Work(team, folder.path()).cut_off_after(2);
  Work other(team, folder.path(), "another model");
  (void)other.finish();
  EXPECT_EQ(other.began_at, 0);

  const SharedFolder damaged(team);
  Work(team, damaged.path()).cut_off_after(2);
  if (team.rank() == 0) {
    const auto part = folder_of(damaged.path()) / "step-000002" / "linear-3-row-0.h5";
    ASSERT_TRUE(std::filesystem::exists(part));
    std::filesystem::resize_file(part, std::filesystem::file_size(part) - 100);
  }
  team.barrier();
  Work again(team, damaged.path());
  const auto got = again.finish();
  EXPECT_EQ(again.began_at, 0);
  if (team.rank() != 0) return;
  EXPECT_EQ(got, undisturbed());
}

TEST_F(StoredProgressTest, NothingIsWrittenOfShortBlocks) {
  Communicator& team = test_world();
  const SharedFolder folder(team);
  Work work(team, folder.path(), "a model", 4);
  (void)work.finish();
  EXPECT_TRUE(work.store.keys("recipes").empty());
}

TEST_F(StoredProgressTest, WhatIsNotNeededAnyMoreGoes) {
  if (test_world().size() > 1) GTEST_SKIP() << "one rank does it";
  const TemporaryFolder folder;
  Hdf5Store store(folder.path());
  Record record;
  const std::string done = "recipes/a/progress/block-0001/step-000002/part",
                    wanted = "recipes/a/progress/block-0002/step-000002/part",
                    gone = "recipes/b/progress/block-0002/step-000002/part";
  for (const std::string& key : {done, wanted, gone, block_key("a", 1)}) store.commit(key, record);
  remove_unused_progress({"a"}, store);
  EXPECT_THAT(store.keys("recipes"), testing::ElementsAre(block_key("a", 1), wanted));
}

}  // namespace
}  // namespace roundhouse
