// Gradients of a model over the stages of a pipeline: whatever the mesh, and wherever a run was cut off, the sums have the same bits.
#include "pipeline/schedule/gradient_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "pipeline/run/hdf5_store.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"
#include "tests/pipeline/schedule/narrow_model.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

constexpr int kBlocks = 6;
constexpr const char* kFolder = "gradients/6x24";
constexpr const char* kMade = "sums";  // the recipe whose blocks are made of gradients

Samples few_samples(int shards) {
  Random random(5);
  std::vector<std::int32_t> ids(6 * 24);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(1024));
  return Samples(6, 24, shards, ids);
}

class Walker {
 public:
  explicit Walker(Communicator& world, int shards = 4)
      : world_(world), samples_(few_samples(shards)) {}

  // All that is missing in the store; false if stopped.
  bool run(RunStore& store, MeshShape shape, std::function<void(JobMonitor&)> on_block = nullptr) {
    const Mesh mesh(world_, shape, kBlocks, *backend_);
    JobMonitor monitor(world_, nullptr, 60, 0);
    ActivationBudget budget(std::size_t{1} << 30, folder_.path());
    std::vector<bool> done;
    for (int block = 0; block < kBlocks; ++block)
      done.push_back(store.has(block_key(kMade, block)));
    world_.barrier();
    taken_.clear();
    return walk_all_gradients(
        {.backend = *backend_,
         .mesh = mesh,
         .model = model_,
         .decoder = *decoder_,
         .samples = samples_,
         .store = store,
         .budget = budget,
         .saved_activation_bytes = std::size_t{1} << 30,
         .monitor = monitor,
         .wanted = {.sum = true, .squares = true},
         .folder = kFolder,
         .take =
             [&](const BlockSite& site, BlockWeights&, BlockGradients& gradients) {
               commit(site, gradients, store);
               taken_.push_back(site.block);
               if (on_block) on_block(monitor);
             }},
        done);
  }
  const std::vector<int>& taken() const { return taken_; }  // blocks, by this rank's team

 private:
  // The sums of all linears, whole, by the team's rank 0.
  void commit(const BlockSite& site, BlockGradients& gradients, RunStore& store) {
    Record record;
    record.attributes = {{"block", site.block}};
    for (std::size_t i = 0; i < site.decoder.linears().size(); ++i) {
      const LinearSpec& spec = site.decoder.linears()[i];
      HostTensor sum(DType::kF32, {spec.rows, spec.cols}), squares = sum;
      for (const auto& tile : gradients.finish(static_cast<int>(i))) {
        const auto put = [&](const ConstMatrix& rows, HostTensor& into) {
          backend_->download(rows.data, std::as_writable_bytes(into.as<float>().subspan(
                                            static_cast<std::size_t>(tile.first * spec.cols),
                                            static_cast<std::size_t>(rows.rows * rows.cols))));
        };
        put(tile.sum, sum);
        put(tile.squares, squares);
      }
      for (HostTensor* tensor : {&sum, &squares}) {
        const auto parts = site.team.gather(tensor->bytes(), 0);  // other ranks' rows are zero
        for (std::size_t rank = 1; rank < parts.size(); ++rank) {
          std::vector<float> theirs(tensor->as<float>().size());
          std::ranges::copy(parts[rank], std::as_writable_bytes(std::span(theirs)).begin());
          for (std::size_t j = 0; j < theirs.size(); ++j) tensor->as<float>()[j] += theirs[j];
        }
      }
      record.tensors.emplace(spec.name + ".sum", std::move(sum));
      record.tensors.emplace(spec.name + ".squares", std::move(squares));
    }
    if (site.team.rank() == 0) store.commit(block_key(kMade, site.block), record);
    site.team.barrier();
  }

  Communicator& world_;
  TemporaryFolder folder_;
  CausalLM model_{narrow_model()};
  Samples samples_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), 24, *backend_);
  std::vector<int> taken_;
};

// The bytes of every block.
std::map<std::string, std::string> contents(RunStore& store) {
  std::map<std::string, std::string> all;
  for (int block = 0; block < kBlocks; ++block) {
    const std::string key = block_key(kMade, block);
    const auto record = store.load(key);
    if (!record) continue;
    all[key] = record->attributes.dump();
    for (const auto& [name, tensor] : record->tensors) {
      all[key] += "|" + name + "|";
      all[key].append(reinterpret_cast<const char*>(tensor.bytes().data()), tensor.bytes().size());
    }
  }
  return all;
}

const std::map<std::string, std::string>& undisturbed(int shards = 4) {
  static std::map<int, std::map<std::string, std::string>> all;
  if (!all.contains(shards)) {
    const auto alone = make_local_communicator();
    MemoryStore store;
    EXPECT_TRUE(Walker(*alone, shards).run(store, {1, 1}));
    EXPECT_EQ(store.keys().size(), std::size_t{kBlocks}) << "no snapshot is left";
    all[shards] = contents(store);
  }
  return all[shards];
}

template <class Visit>
void for_each_mesh(Visit visit) {
  const int ranks = test_world().size();
  for (int pipeline = 1; pipeline <= ranks; ++pipeline) {
    if (ranks % pipeline == 0) visit(MeshShape{pipeline, ranks / pipeline});
  }
}

TEST(GradientScheduleTest, SameBytesOnEveryMesh) {
  const auto& expected = undisturbed();
  ASSERT_EQ(expected.size(), std::size_t{kBlocks});
  for_each_mesh([&](MeshShape shape) {
    const SharedFolder folder(test_world());
    Hdf5Store store(folder.path());
    EXPECT_TRUE(Walker(test_world()).run(store, shape));
    test_world().barrier();
    EXPECT_EQ(contents(store), expected) << shape.pipeline << " x " << shape.data;
    EXPECT_TRUE(store.keys("gradients").empty());
    test_world().barrier();
  });
}

TEST(GradientScheduleTest, ResumesAfterAFailureAtAnyWrite) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed();
  Walker walker(test_world());
  // 6 blocks and 5 snapshots x 4 shards are 26 writes: a block, then the snapshot before it.
  for (int n = 1; n <= 26; n += 2) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    const auto made = contents(store).size();
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(walker.taken().size(), kBlocks - made) << "blocks that are there are not made again";
    EXPECT_EQ(contents(store), expected) << "after a failure at write " << n;
    EXPECT_TRUE(store.keys("gradients").empty());
  }
}

// Whatever is missing, and whether or not there is a snapshot behind it.
TEST(GradientScheduleTest, MakesWhatIsMissingAndNothingElse) {
  const auto& expected = undisturbed();
  for_each_mesh([&](MeshShape shape) {
    const SharedFolder folder(test_world());
    Hdf5Store store(folder.path());
    Walker walker(test_world());
    EXPECT_TRUE(walker.run(store, shape));
    test_world().barrier();
    for (const std::vector<int>& missing : {std::vector<int>{5}, {0}, {1, 4}, {2, 3}, {}}) {
      if (test_world().rank() == 0) {
        for (const int block : missing) store.remove(block_key(kMade, block));
      }
      test_world().barrier();
      EXPECT_TRUE(walker.run(store, shape));
      for (const int block : walker.taken()) EXPECT_THAT(missing, testing::Contains(block));
      test_world().barrier();
      EXPECT_EQ(contents(store), expected);
      test_world().barrier();
    }
  });
}

// A rank asks to stop after each block in turn: all end, with the gradient behind what is missing written down, from which the next
// run goes on. Also where ranks have no shard: they hear nothing from the stage after theirs.
TEST(GradientScheduleTest, StopsTogetherAndGoesOn) {
  for (const int shards : {4, 1}) {
    const auto& expected = undisturbed(shards);
    for_each_mesh([&](MeshShape shape) {
      const SharedFolder folder(test_world());
      Hdf5Store store(folder.path());
      Walker walker(test_world(), shards);
      int runs = 1;
      while (!walker.run(store, shape,
                         [](JobMonitor& monitor) { monitor.watchdog().request_stop(); })) {
        ASSERT_LE(++runs, kBlocks);
        test_world().barrier();
        EXPECT_FALSE(store.keys("gradients").empty());
        test_world().barrier();
      }
      // Each run makes one block, but that a stage has handed on the gradient before its first block is done: the stage before makes
      // one more.
      EXPECT_EQ(runs, kBlocks - (shape.pipeline - 1)) << shape.pipeline << " x " << shape.data;
      test_world().barrier();
      EXPECT_EQ(contents(store), expected) << shape.pipeline << " x " << shape.data;
      test_world().barrier();
    });
  }
}

// One that is damaged is not gone on from.
TEST(GradientScheduleTest, ADamagedSnapshotIsLeftAlone) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  MemoryStore store;
  Walker walker(test_world());
  store.fail_at_write(11);  // within the third block's: block 4's snapshot is whole
  EXPECT_THROW(walker.run(store, {1, 1}), Error);
  store.fail_at_write(0);
  ASSERT_THAT(store.keys(kFolder), testing::Contains("gradients/6x24/at-0004/shard-02"));
  store.damage("gradients/6x24/at-0004/shard-02");
  EXPECT_TRUE(walker.run(store, {1, 1}));
  EXPECT_EQ(contents(store), undisturbed());
}

}  // namespace
}  // namespace roundhouse
