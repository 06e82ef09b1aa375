// What of the activations' memory is pinned, and when: on an emulated GPU, whose driver counts.
#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "stages/flow/activations.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

class PinningTest : public testing::Test {
 protected:
  ~PinningTest() override { ::unsetenv("EMULATED_PINNABLE_BYTES"); }
  static void set_pinnable(std::size_t bytes) {
    ::setenv("EMULATED_PINNABLE_BYTES", std::to_string(bytes).c_str(), 1);
  }
  static int pins() { return emulation::pinning().pins; }
  static int unpins() { return emulation::pinning().unpins; }
  static std::size_t pinned() { return emulation::pinning().bytes; }

  TemporaryFolder folder_;
  std::unique_ptr<Backend> backend_ = make_backend("cuda", {});
};

// GPTQ on Llama-2-70B, 512 x 2048 tokens, with every length 64th of what it is: the residual lives for the whole recipe, the
// inputs of o_proj and down_proj for one walk each of every block.
class Llama70b {
 public:
  static constexpr int kShards = 16;
  static constexpr std::int64_t kTokens = 512 * 2048 / kShards;
  static constexpr std::int64_t kHidden = 8192 / 64;
  static constexpr std::int64_t kInner = 28672 / 64;
  static constexpr std::size_t kResidualBytes = 2 * kShards * kTokens * kHidden;
  static constexpr std::size_t kInnerBytes = 2 * kShards * kTokens * kInner;

  explicit Llama70b(ActivationBudget& budget)
      : budget_(budget), residual_(budget, DType::kBF16, kHidden) {
    reserve(residual_);
  }
  void block() {
    for (const std::int64_t cols : {kHidden, kInner}) {
      Activations carried(budget_, DType::kBF16, cols);
      reserve(carried);
    }
  }

 private:
  static void reserve(Activations& activations) {
    for (int shard = 0; shard < kShards; ++shard) activations.reserve(shard, kTokens);
  }
  ActivationBudget& budget_;
  Activations residual_;
};

TEST_F(PinningTest, MemoryIsPinnedOnceAndServesEveryWidth) {
  const int unpins_before = unpins();
  {
    ActivationBudget budget(std::size_t{2} << 30, folder_.path(), backend_.get());
    EXPECT_EQ(pinned(), 0u);  // nothing in advance
    Llama70b run(budget);
    run.block();
    const int after_one = pins();
    for (int block = 0; block < 3; ++block) run.block();
    EXPECT_EQ(pins(), after_one);
    EXPECT_EQ(unpins(), unpins_before);
    EXPECT_EQ(budget.spilled_bytes(), 0u);
    // The input of o_proj makes room for that of down_proj.
    EXPECT_GE(pinned(), Llama70b::kResidualBytes + Llama70b::kInnerBytes);
    EXPECT_LT(pinned(),
              Llama70b::kResidualBytes + Llama70b::kInnerBytes + (std::size_t{128} << 20));
    EXPECT_EQ(budget.pinned_bytes(), pinned());
  }
  EXPECT_EQ(pinned(), 0u);
}

// Half of a host of 128 GiB, where they do not all fit: what is beyond is in files, never pinned, and nothing else moves.
TEST_F(PinningTest, WhereTheBudgetIsShortNothingIsPinnedAnewForEveryBlock) {
  const std::size_t limit = std::size_t{62} << 24;
  ActivationBudget budget(limit, folder_.path(), backend_.get());
  Llama70b run(budget);
  run.block();
  const int after_one = pins(), unpins_after_one = unpins();
  for (int block = 0; block < 3; ++block) run.block();
  EXPECT_EQ(pins(), after_one);
  EXPECT_EQ(unpins(), unpins_after_one);
  EXPECT_LE(pinned(), limit);
  EXPECT_GT(pinned(), limit - limit / 10);
  Activations wide(budget, DType::kBF16, Llama70b::kInner);
  for (int shard = 0; shard < Llama70b::kShards; ++shard) wide.reserve(shard, Llama70b::kTokens);
  EXPECT_GT(budget.spilled_bytes(), 0u);
  EXPECT_LE(pinned(), limit);
}

TEST_F(PinningTest, AFailureIsSaidOnceAndCopiesGoOn) {
  std::vector<std::string> said;
  ActivationBudget budget(std::size_t{1} << 30, folder_.path(), backend_.get());
  budget.on_pin_failure = [&](std::size_t bytes, const std::string& why) {
    EXPECT_GT(bytes, 0u);
    said.push_back(why);
  };
  set_pinnable(std::size_t{100} << 20);
  Activations activations(budget, DType::kBF16, 1 << 20);
  constexpr int kShards = 7;
  for (int shard = 0; shard < kShards; ++shard) activations.reserve(shard, 20);  // 40 MiB each
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], testing::HasSubstr("cudaHostRegister"));
  EXPECT_GT(pinned(), 0u);
  EXPECT_LE(pinned(), std::size_t{100} << 20);

  // Rows on both sides of the end of what is pinned, which is inside a shard.
  HostTensor host(DType::kBF16, {20, 1 << 20});
  for (int shard = 0; shard < kShards; ++shard) {
    std::ranges::fill(host.bytes(), static_cast<std::byte>(shard + 1));
    const Tensor rows = Tensor::upload(*backend_, host.view(), DType::kBF16);
    activations.store(shard, 0, rows.view(), *backend_);
  }
  for (int shard = 0; shard < kShards; ++shard) {
    const Tensor rows = activations.load(shard, 0, 20, *backend_);
    backend_->download(rows.view().data, host.bytes());
    EXPECT_EQ(std::ranges::count(host.bytes(), static_cast<std::byte>(shard + 1)),
              static_cast<std::ptrdiff_t>(host.bytes().size()));
  }
}

TEST_F(PinningTest, TheLimitOnLockedMemoryIsNamed) {
  set_pinnable(0);
  std::vector<std::byte> host(4096);
  const std::string why = backend_->pin(host);
  EXPECT_THAT(why, testing::HasSubstr("cudaErrorMemoryAllocation"));
  rlimit lockable{};
  getrlimit(RLIMIT_MEMLOCK, &lockable);
  if (lockable.rlim_cur != RLIM_INFINITY) {
    EXPECT_THAT(why,
                testing::HasSubstr(std::to_string(lockable.rlim_cur >> 10) + " KiB (ulimit -l)"));
  }
}

// CUDA refuses copies of memory that is pinned in part, or in two pieces.
TEST_F(PinningTest, CopiesAreCutWherePinnedMemoryBeginsAndEnds) {
  struct alignas(4096) Pages {
    std::array<std::byte, 5 * 4096> bytes;
  };
  const auto from = std::make_unique<Pages>(), to = std::make_unique<Pages>();
  for (const auto& pages : {from.get(), to.get()}) {
    EXPECT_EQ(backend_->pin(std::span(pages->bytes).subspan(4096, 4096)), "");
    EXPECT_EQ(backend_->pin(std::span(pages->bytes).subspan(8192, 4096)), "");
  }
  for (std::size_t i = 0; i < from->bytes.size(); ++i)
    from->bytes[i] = static_cast<std::byte>(i * i >> 3);
  for (const std::size_t begin : {std::size_t{0}, std::size_t{5000}}) {
    std::ranges::fill(to->bytes, std::byte{0xee});
    const std::span<std::byte> source = std::span(from->bytes).subspan(begin, 14000);
    const std::span<std::byte> target = std::span(to->bytes).subspan(begin, 14000);
    const Buffer device = backend_->allocate(source.size());
    backend_->await_upload(backend_->upload_ahead(source, device.get()));
    backend_->download_behind(device.get(), target);
    backend_->finish_downloads();
    EXPECT_TRUE(std::ranges::equal(source, target));
    EXPECT_EQ(to->bytes[begin + 14000], std::byte{0xee});
  }
  for (const auto& pages : {from.get(), to.get()}) {
    backend_->unpin(std::span(pages->bytes).subspan(4096, 4096));
    backend_->unpin(std::span(pages->bytes).subspan(8192, 4096));
  }
}

}  // namespace
}  // namespace roundhouse
