#include "kernels/memory.h"

#include <gmock/gmock.h>

#include <array>
#include <memory>

#include "base/error.h"
#include "kernels/host_threads.h"
#include "tests/kernels/backend_test.h"

namespace roundhouse {
namespace {

using MemoryTest = BackendTest;
using reference::Matrix;

TEST_P(MemoryTest, AllocatesAlignedMemoryAndNoBytesToo) {
  for (const std::size_t bytes : {0u, 1u, 63u, 4096u}) {
    const Buffer buffer = backend().allocate(bytes);
    EXPECT_NE(buffer, nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.get()) % 64, 0u);
  }
}

TEST_P(MemoryTest, SaysHowMuchWasWantedWhenThereIsNoMoreMemory) {
  try {
    (void)backend().allocate(std::size_t{1} << 60);
    FAIL() << "2^60 bytes were found";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("1152921504606846976"), std::string::npos) << e.what();
  }
  EXPECT_THROW((void)backend().allocate(std::numeric_limits<std::size_t>::max()), Error);
}

TEST_P(MemoryTest, KnowsAboutHowMuchIsLeft) {
  const std::size_t before = backend().available_bytes();
  EXPECT_GT(before, std::size_t{1} << 20);
  EXPECT_LT(before, std::size_t{1} << 50);
  const auto shared = make_backend(GetParam(), {.sharers = 4});
  EXPECT_LT(shared->available_bytes(), before / 3);
  EXPECT_GT(shared->available_bytes(), before / 6);
}

TEST_P(MemoryTest, UploadsConvertsAndDownloads) {
  const std::uint16_t halves[] = {0x3c00, 0xc000, 0x0001};  // 1, -2, 2^-24
  const Tensor tensor =
      Tensor::upload(backend(), {DType::kF16, {3}, std::as_bytes(std::span(halves))}, DType::kF32);
  EXPECT_EQ(tensor.rows(), 1);
  EXPECT_EQ(tensor.cols(), 3);
  EXPECT_EQ(download(backend(), tensor.view()).values, (std::vector<double>{1.0, -2.0, 0x1p-24}));
}

// By several threads, and piece by piece where they go to a device.
TEST_P(MemoryTest, ConvertsMoreThanAPiece) {
  const std::int64_t count = (8 << 20) + 5;
  std::vector<std::uint16_t> halves(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < halves.size(); ++i) {
    halves[i] = static_cast<std::uint16_t>(i * 7919 % 0x7c00);  // finite
  }
  set_host_threads(3);
  const Tensor tensor = Tensor::upload(
      backend(), {DType::kF16, {count}, std::as_bytes(std::span(halves))}, DType::kF32);
  set_host_threads(1);
  std::vector<float> found(halves.size());
  backend().download(tensor.f32(), std::as_writable_bytes(std::span(found)));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < halves.size(); ++i) wrong += found[i] != half_to_float(halves[i]);
  EXPECT_EQ(wrong, 0u);
}

TEST(HostThreadsTest, DoAllPiecesAndThrowWhatTheLowestDoes) {
  for (const int threads : {1, 3}) {
    set_host_threads(threads);
    std::vector<int> done(100);
    on_host_threads(100, [&](std::int64_t piece) { ++done[piece]; });
    EXPECT_THAT(done, testing::Each(1));
    try {
      on_host_threads(100, [&](std::int64_t piece) {
        if (piece >= 40) throw Error(std::to_string(piece));
      });
      FAIL() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "40");
    }
  }
  set_host_threads(1);
}

TEST_P(MemoryTest, CopiesWithStridesAndBetweenFloatTypes) {
  for (const auto& [cols, extra] : {std::pair<std::int64_t, std::int64_t>{33, 3}, {40, 8}}) {
    const Matrix values = random_matrix(5, cols, 1);
    Wide from(backend(), values, {.extra = extra});
    Tensor half(backend(), DType::kF16, 5, cols);
    Tensor brain(backend(), DType::kBF16, 5, cols);
    Wide back(backend(), constant_matrix(5, cols, 0.0), {.extra = extra});
    Wide same(backend(), constant_matrix(5, cols, 0.0));
    backend().copy(from, half.view());
    backend().copy(half.view(), brain.view());
    backend().copy(half.view(), back);
    backend().copy(from, same);
    const Matrix got = download(backend(), back.view());
    const Matrix got_brain = download(backend(), brain.view());
    for (std::size_t i = 0; i < values.values.size(); ++i) {
      const float rounded = round_to_half(static_cast<float>(values.values[i]));
      EXPECT_EQ(got.values[i], static_cast<double>(rounded));
      EXPECT_EQ(got_brain.values[i],
                static_cast<double>(bfloat16_to_float(float_to_bfloat16(rounded))));
    }
    EXPECT_EQ(download(backend(), same.view()).values, values.values);
  }
}

// More than a backend that stages its copies keeps room for at a time, and what it reads is overwritten after sync().
TEST_P(MemoryTest, CopiesManyBytesThereAndBack) {
  constexpr std::size_t kCount = 10'000'019;
  std::vector<std::uint32_t> values(kCount);
  for (std::size_t i = 0; i < kCount; ++i) values[i] = static_cast<std::uint32_t>(i * 2654435761u);
  const std::vector<std::uint32_t> expected = values;
  const auto bytes = std::as_writable_bytes(std::span(values));
  const Buffer buffer = backend().allocate(bytes.size());
  backend().upload(std::span<const std::byte>(bytes).first(12345),
                   buffer.get());  // and in two parts
  backend().upload(std::span<const std::byte>(bytes).subspan(12345), buffer.get() + 12345);
  backend().sync();
  std::ranges::fill(values, 0u);
  backend().download(buffer.get(), bytes);
  EXPECT_EQ(values, expected);
}

// The order of the header: an upload ahead waits for what uses its target, and what is downloaded behind is what was there
// when the call was queued, though it is overwritten and freed right after.
TEST_P(MemoryTest, CopiesBesideTheQueueKeepItsOrder) {
  constexpr std::int64_t kColumns = 1000;
  struct alignas(4096) Row {  // pages of its own: those are what is pinned
    std::array<float, kColumns> values;
  };
  for (const bool pinned : {false, true}) {
    const auto rows = std::make_unique<std::array<Row, 4>>();
    auto& [first, second, behind, later] = *rows;
    first.values.fill(1.0f);
    second.values.fill(2.0f);
    const auto bytes = [](Row& row) { return std::as_writable_bytes(std::span(row.values)); };
    if (pinned) {
      for (Row& row : *rows) EXPECT_EQ(backend().pin(bytes(row)), "");
    }
    Tensor a(backend(), DType::kF32, 1, kColumns), sum(backend(), DType::kF32, 1, kColumns);
    backend().zero(sum.view());
    backend().await_upload(backend().upload_ahead(bytes(first), a.view().data));
    backend().add(a.view(), sum.view());
    const Memory::UploadTicket ticket = backend().upload_ahead(bytes(second), a.view().data);
    backend().download_behind(sum.view().data, bytes(behind));
    backend().scale(10.0f, sum.view());
    backend().await_upload(ticket);
    backend().add(a.view(), sum.view());
    backend().download_behind(sum.view().data, bytes(later));
    sum = Tensor();
    Tensor(backend(), DType::kF32, 1, kColumns);
    backend().finish_downloads();
    EXPECT_THAT(behind.values, testing::Each(1.0f)) << pinned;
    EXPECT_THAT(later.values, testing::Each(12.0f)) << pinned;
    backend().sync();
    if (pinned) {
      for (Row& row : *rows) backend().unpin(bytes(row));
    }
  }
}

TEST_P(MemoryTest, ZeroClearsTheViewAndNothingElse) {
  Tensor tensor(backend(), DType::kF32, 4, 6);
  const std::vector<float> ones(24, 1.0f);
  backend().upload(std::as_bytes(std::span(ones)), tensor.view().data);
  backend().zero(tensor.view().row_range(1, 3).col_range(2, 5));
  const Matrix got = download(backend(), tensor.view());
  for (std::int64_t i = 0; i < 4; ++i) {
    for (std::int64_t j = 0; j < 6; ++j) {
      const bool inside = i >= 1 && i < 3 && j >= 2 && j < 5;
      EXPECT_EQ(got(i, j), inside ? 0.0 : 1.0) << i << " " << j;
    }
  }
  backend().zero(tensor.view().row_range(0, 0));
  backend().zero(tensor.view().col_range(3, 3));
}

TEST_P(MemoryTest, RangesOutsideTheirMatrixAreRefused) {
  Tensor tensor(backend(), DType::kF32, 4, 6);
  EXPECT_THROW((void)tensor.view().row_range(2, 5), Error);
  EXPECT_THROW((void)tensor.view().col_range(-1, 3), Error);
  EXPECT_THROW((void)Tensor(backend(), DType::kF16, 2, 2).view().f32(), Error);
}

TEST_P(MemoryTest, DescribesItself) { EXPECT_FALSE(backend().description().empty()); }

TEST_P(MemoryTest, SaysWhatDecidesItsBits) {
  const std::string kind = backend().computes_as();
  EXPECT_TRUE(kind.starts_with(backend().is_host_memory() ? "CPU x86-64" : "GPU ")) << kind;
  EXPECT_EQ(kind, make_backend(GetParam(), {.threads = 3})->computes_as())
      << "threads change no bits";
}

TEST(BackendTableTest, KnowsWhatWasBuilt) {
  EXPECT_EQ(built_backends().front(), "cpu");
  EXPECT_TRUE(has_device("cpu"));
  EXPECT_FALSE(has_device("abacus"));
  EXPECT_THROW(make_backend("abacus", {}), Error);
  EXPECT_EQ(make_backend("cpu", {.threads = 3})->description().substr(0, 14), "CPU, 3 threads");
}

INSTANTIATE_TEST_SUITE_P(Backends, MemoryTest, testing::ValuesIn(built_backends()), backend_name);

}  // namespace
}  // namespace roundhouse
