// Sums over shards: at any owner and on any number of ranks the bits of the tree, added by one. Messages are as the planner
// reckons them.
#include "stages/flow/shard_sum.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <vector>

#include "comm/counted_communicator.h"
#include "kernels/backend.h"
#include "stages/quantize/block_cost.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

using Part = ShardMatrixSum::Part;
constexpr int kShards = 6;

// Of magnitudes so different that another order of additions gives other bits.
float element(int shard, std::int64_t row, std::int64_t col) {
  const auto mixed = static_cast<std::uint32_t>(row * 7919 + col * 104729 + shard * 15485863);
  return static_cast<float>(mixed % 1009) * (shard % 2 == 0 ? 1.0f : 3e-5f);
}

float tree(int begin, int end, std::int64_t row, std::int64_t col) {
  if (end - begin == 1) return element(begin, row, col);
  const int middle = begin + static_cast<int>(std::bit_floor(unsigned(end - begin - 1)));
  return tree(begin, middle, row, col) + tree(middle, end, row, col);
}

class ShardMatrixSumTest : public testing::Test {
 protected:
  Tensor sum(std::int64_t rows, std::int64_t cols, Part part, int owner) {
    Communicator& world = *world_;
    ShardMatrixSum sum(world, *backend_, kShards, rows, cols, part);
    const PartRange mine = parts_of_rank(kShards, world.rank(), world.size());
    for (int shard = mine.begin; shard < mine.end; ++shard) {
      sum.begin_shard();
      const Matrix m = sum.matrix();
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < cols; ++col)
          m.f32()[row * m.stride + col] = element(shard, row, col);
      }
      sum.end_shard(shard);
    }
    return sum.finish(owner);
  }

  void expect_sum(std::int64_t rows, std::int64_t cols, Part part) {
    for (int owner = 0; owner < world_->size(); ++owner) {
      const Tensor whole = sum(rows, cols, part, owner);
      ASSERT_EQ(whole.empty(), world_->rank() != owner);
      std::int64_t wrong = 0;
      for (std::int64_t row = 0; row < rows && !whole.empty(); ++row) {
        const std::int64_t end = part == Part::kWhole ? cols : row + 1;
        for (std::int64_t col = 0; col < end; ++col)
          wrong += whole.f32()[row * cols + col] != tree(0, kShards, row, col);
      }
      EXPECT_EQ(wrong, 0) << "owner " << owner;
    }
  }

  std::atomic<std::uint64_t> sent_ = 0;
  std::unique_ptr<Communicator> world_ = count_bytes(test_world().split(0, 0), sent_);
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
};

TEST_F(ShardMatrixSumTest, ATriangleOfSeveralBands) {
  expect_sum(1300, 1300, Part::kLowerTriangle);
}

TEST_F(ShardMatrixSumTest, AllOfSeveralBands) { expect_sum(1100, 40, Part::kWhole); }

TEST_F(ShardMatrixSumTest, OneRow) { expect_sum(1, 130, Part::kWhole); }

TEST_F(ShardMatrixSumTest, SendsWhatIsReckoned) {
  constexpr std::int64_t kSize = 1300;
  const int owner = world_->size() - 1;
  sum(kSize, kSize, Part::kLowerTriangle, owner);
  const std::int64_t all = world_->all_reduce_sum(static_cast<std::int64_t>(sent_));
  TeamTraffic traffic;
  traffic.sums = {{.tiles = ShardMatrixSum::bands(kSize, kSize, Part::kLowerTriangle),
                   .first_owner = owner,
                   .gathered = true}};
  const TeamBytes reckoned = team_bytes(traffic, world_->size(), kShards, 4);
  EXPECT_EQ(static_cast<double>(all), reckoned.sent);
  // No rank receives what the whole sum's owner would if all went to it.
  const double whole = 4.0 * kSize * kSize;
  EXPECT_LT(reckoned.received_by_devices, 2 * whole);
}

}  // namespace
}  // namespace roundhouse
