#include "pipeline/run/whole_records.h"

#include <gtest/gtest.h>

#include <fstream>

#include "pipeline/run/hdf5_store.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr int kBlocks = 5;

Record record() {
  Record made;
  made.tensors["t"] = HostTensor(DType::kU8, {1 << 16});
  std::ranges::fill(made.tensors["t"].bytes(), std::byte{7});
  made.attributes = {{"a", 1}};
  return made;
}

// In the middle of its tensor, where neither its seal nor its attributes are.
void flip_a_bit(const fs::path& path) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(fs::file_size(path) / 2));
  file.put(6);
}

TEST(WholeRecordsTest, DamageThatTheStartDoesNotSeeIsFoundOnceAndRemoved) {
  Communicator& world = test_world();
  const SharedFolder folder(world);
  const std::vector<std::string> keys = block_keys("rtn", kBlocks);
  if (world.rank() == 0) {
    Hdf5Store store(folder.path());
    for (const std::string& key : keys) store.commit(key, record());
    flip_a_bit(store.path_of(keys[1]));
    flip_a_bit(store.path_of(keys[4]));
  }
  world.barrier();
  Hdf5Store store(folder.path());
  int reports = 0, ticks = 0;
  store.on_damage = [&](const std::string&, const std::string&) { ++reports; };
  for (const std::string& key : keys) EXPECT_TRUE(store.has(key));
  world.barrier();
  EXPECT_EQ(reports, 0);

  EXPECT_EQ(remove_damaged(keys, store, world, [&] { ++ticks; }), 2);
  EXPECT_EQ(world.all_reduce_sum(reports), 2);
  EXPECT_EQ(world.all_reduce_sum(ticks), kBlocks) << "each is read by one rank";
  EXPECT_FALSE(store.has(keys[1]));
  EXPECT_FALSE(store.has(keys[4]));
  world.barrier();

  if (world.rank() == world.size() - 1) {
    for (const int block : {1, 4}) store.commit(keys[block], record());
  }
  world.barrier();
  ticks = 0;
  EXPECT_EQ(remove_damaged(keys, store, world, [&] { ++ticks; }), 0);
  EXPECT_EQ(world.all_reduce_sum(ticks), 0) << "all were read, or made, before";
}

TEST(RecordKeysTest, ADecisionIsOneOfThem) {
  Recipe recipe;
  recipe.name = "x";
  EXPECT_EQ(record_keys(recipe, 2), block_keys("x", 2));
  recipe.needs.decision = true;
  EXPECT_EQ(record_keys(recipe, 1),
            (std::vector<std::string>{"recipes/x/decision", "recipes/x/block-0000"}));
}

}  // namespace
}  // namespace roundhouse
