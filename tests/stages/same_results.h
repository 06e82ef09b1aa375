// What quantizing a block leaves, by one rank alone and by a team: the same bits.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/hash.h"
#include "tests/comm/mpi_world.h"
#include "tests/stages/quantize_world.h"

namespace roundhouse {

inline std::string hash_of(const QuantizedLinear& linear) {
  Xxh3 hash;
  for (const HostTensor* part :
       {&linear.codes, &linear.scales, &linear.zeros, &linear.group_of_column, &linear.table,
        &linear.sparse.offsets, &linear.sparse.columns, &linear.sparse.values}) {
    hash.update(part->bytes());
  }
  return linear.name + " " + hash.hex() + " " + linear.record.dump();
}

inline std::vector<std::byte> all_shards(const ShardBytes& shards) {
  std::vector<std::byte> all;
  for (const auto& [shard, rows] : shards) all.insert(all.end(), rows.begin(), rows.end());
  return all;
}

// The rows of all shards in order, at rank 0.
inline std::vector<std::byte> gather_shards(const ShardBytes& mine) {
  std::vector<std::byte> all;
  for (const auto& theirs :
       test_world().gather(all_shards(mine), 0)) {  // ranks hold runs of shards
    all.insert(all.end(), theirs.begin(), theirs.end());
  }
  return all;
}

// `team`: of test_world(). `alone` is asked for at rank 0, which compares.
inline void expect_same_results(const std::function<std::unique_ptr<QuantizeWorld>()>& alone,
                                QuantizeWorld& team, const nlohmann::json& recipe) {
  const QuantizedBlock got = team.quantize(recipe);
  const std::vector<std::byte> output = gather_shards(team.residual());
  const std::vector<std::byte> original = gather_shards(team.original());
  if (test_world().rank() != 0) return;
  const std::unique_ptr<QuantizeWorld> one = alone();
  const QuantizedBlock want = one->quantize(recipe);
  ASSERT_EQ(got.linears.size(), want.linears.size());
  for (std::size_t i = 0; i < want.linears.size(); ++i) {
    EXPECT_EQ(hash_of(got.linears[i]), hash_of(want.linears[i])) << recipe;
  }
  // All but the seconds.
  nlohmann::json got_record = got.record, want_record = want.record;
  got_record.erase("phases");
  want_record.erase("phases");
  EXPECT_EQ(got_record, want_record) << recipe;
  ASSERT_EQ(got.replaced.size(), want.replaced.size());
  for (const auto& [name, tensor] : want.replaced) {
    EXPECT_TRUE(std::ranges::equal(got.replaced.at(name).bytes(), tensor.bytes())) << name;
  }
  EXPECT_TRUE(output == all_shards(one->residual())) << recipe;
  EXPECT_TRUE(original == all_shards(one->original())) << "the original stream, " << recipe;
}

}  // namespace roundhouse
