#include "stages/flow/activations.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "kernels/backend.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

const std::size_t kPage = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

class ActivationsTest : public testing::Test {
 protected:
  Tensor numbers(std::int64_t rows, std::int64_t cols, float first) {
    HostTensor host(DType::kF32, {rows, cols});
    std::iota(host.as<float>().begin(), host.as<float>().end(), first);
    return Tensor::upload(*backend_, host.view(), DType::kF32);
  }
  float at(const Tensor& tensor, std::int64_t row, std::int64_t col) {
    return tensor.f32()[row * tensor.cols() + col];
  }

  TemporaryFolder folder_;
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
};

TEST_F(ActivationsTest, GivesBackWhatWasStored) {
  ActivationBudget budget(1 << 20, folder_.path());
  Activations activations(budget, DType::kF32, 3);
  activations.reserve(5, 4);
  activations.store(5, 0, numbers(2, 3, 0).view(), *backend_);
  activations.store(5, 2, numbers(2, 3, 100).view(), *backend_);
  const Tensor middle = activations.load(5, 1, 2, *backend_);
  EXPECT_EQ(at(middle, 0, 0), 3);
  EXPECT_EQ(at(middle, 1, 2), 102);
  EXPECT_EQ(activations.bytes(5).size(), 4u * 3 * sizeof(float));
}

TEST_F(ActivationsTest, ShardsStayOnADeviceThatHasRoomForThem) {
  ActivationBudget budget(1 << 20, folder_.path());
  constexpr std::size_t kShard = 4 * 3 * sizeof(float);
  Activations activations(budget, DType::kF32, 3, {backend_.get(), kShard + 1});
  for (const int shard : {0, 1}) activations.reserve(shard, 4);
  EXPECT_THROW((void)activations.bytes(0), Error) << "on the device";
  EXPECT_EQ(activations.bytes(1).size(), kShard) << "there was room for one";
  for (const int shard : {0, 1}) {
    activations.store_behind(shard, 1, numbers(3, 3, 10.0f * static_cast<float>(shard)).view(),
                             *backend_);
  }
  backend_->finish_downloads();
  for (const int shard : {0, 1}) {
    Activations::Loading loading = activations.load_ahead(shard, 2, 2, *backend_);
    const Tensor rows = loading.finish(*backend_);
    EXPECT_EQ(at(rows, 1, 2), 10.0f * static_cast<float>(shard) + 8);
  }
  activations.release(0);
  activations.reserve(2, 4);
  EXPECT_THROW((void)activations.bytes(2), Error) << "in the room of the first";
}

TEST_F(ActivationsTest, BeyondTheBudgetGoesToNamelessFiles) {
  ActivationBudget budget(kPage + 100, folder_.path() / "scratch");
  Activations activations(budget, DType::kF32, 4);
  activations.reserve(0, 5);  // 80 bytes, in the only whole page
  EXPECT_EQ(budget.spilled_bytes(), 0u);
  activations.reserve(1, 5);  // over
  EXPECT_EQ(budget.spilled_bytes(), 80u);
  activations.store(1, 0, numbers(5, 4, 7).view(), *backend_);
  EXPECT_EQ(at(activations.load(1, 4, 1, *backend_), 0, 3), 26);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path() / "scratch"));

  activations.release(0);
  activations.release(1);
  EXPECT_EQ(budget.spilled_bytes(), 0u);
  activations.reserve(2, 5);  // the first one's room is free again
  EXPECT_EQ(budget.spilled_bytes(), 0u);
}

// The pieces that narrow activations leave behind are neighbours, whatever the order in which they go: one wide one fits there.
TEST_F(ActivationsTest, WhatIsReleasedServesOtherWidths) {
  const auto rows = static_cast<std::int64_t>(kPage / (4 * sizeof(float)));
  ActivationBudget budget(6 * kPage, folder_.path());
  Activations kept(budget, DType::kF32, 4);
  Activations narrow(budget, DType::kF32, 4);
  kept.reserve(0, rows);
  for (int shard = 0; shard < 4; ++shard) narrow.reserve(shard, rows);
  for (const int shard : {1, 3, 0, 2}) narrow.release(shard);
  Activations wide(budget, DType::kF32, 20);  // five pages: all that is left
  wide.reserve(0, rows);
  EXPECT_EQ(budget.spilled_bytes(), 0u);
  std::ranges::fill(wide.bytes(0), std::byte{1});
  std::ranges::fill(kept.bytes(0), std::byte{2});
  EXPECT_EQ(std::ranges::count(wide.bytes(0), std::byte{1}),
            static_cast<std::ptrdiff_t>(5 * kPage));
  kept.reserve(1, rows);
  EXPECT_EQ(budget.spilled_bytes(), kPage);
}

TEST_F(ActivationsTest, MemoryThatIsReleasedGoesBackToTheMachine) {
  ActivationBudget budget(std::size_t{64} << 20, folder_.path());
  Activations activations(budget, DType::kF32, 1 << 20);
  activations.reserve(0, 8);
  std::ranges::fill(activations.bytes(0), std::byte{1});
  std::byte* const data = activations.bytes(0).data();
  std::vector<unsigned char> resident(activations.bytes(0).size() / kPage);
  const auto pages_in_memory = [&] {
    EXPECT_EQ(mincore(data, resident.size() * kPage, resident.data()), 0);
    return std::ranges::count_if(resident, [](unsigned char page) { return (page & 1) != 0; });
  };
  EXPECT_GT(pages_in_memory(), 0);
  activations.release(0);
  EXPECT_EQ(pages_in_memory(), 0);
}

TEST_F(ActivationsTest, SaysWhyThereIsNoScratch) {
  std::ofstream(folder_.path() / "file") << "x";
  ActivationBudget budget(0, folder_.path() / "file");
  Activations activations(budget, DType::kF32, 4);
  EXPECT_ANY_THROW(activations.reserve(0, 1));
  EXPECT_FALSE(activations.has(0));
}

TEST_F(ActivationsTest, RefusesAnotherShape) {
  ActivationBudget budget(1 << 20, folder_.path());
  Activations activations(budget, DType::kF32, 3);
  activations.reserve(0, 2);
  EXPECT_THROW(activations.store(0, 1, numbers(2, 3, 0).view(), *backend_), Error);
  EXPECT_THROW(activations.reserve(0, 3), Error);
  activations.reserve(1, 0);  // an empty shard is fine
  EXPECT_EQ(activations.load(1, 0, 0, *backend_).rows(), 0);
}

}  // namespace
}  // namespace roundhouse
