// That the emulation notices what it is there to notice: each kernel here has one mistake.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <kernels/cuda/tensor_core.cuh>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/block.cuh"

namespace roundhouse {
namespace {

constexpr unsigned kThreads = 128;

std::string run(const std::function<void()>& kernel, std::size_t shared_bytes = 1024) {
  return emulation::run_grid({3, 1, 1}, {kThreads, 1, 1}, shared_bytes, kernel);
}

// Each thread hands a number to the one `distance` before it, with or without a barrier between. How many got a wrong one?
int wrong_numbers(bool with_barrier, unsigned distance) {
  int wrong = 0;
  EXPECT_EQ(run([&] {
              int* const numbers = shared_memory<int[kThreads]>();
              numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
              if (with_barrier) __syncthreads();
              const unsigned from = (threadIdx.x + distance) % kThreads;
              wrong += numbers[from] == static_cast<int>(from) ? 0 : 1;
            }),
            "");
  return wrong;
}

TEST(CudaEmulationTest, AMissingBarrierShowsWhicheverWayDataGoes) {
  for (const unsigned distance : {1u, kThreads - 1}) {
    EXPECT_EQ(wrong_numbers(true, distance), 0);
    EXPECT_GT(wrong_numbers(false, distance), 0);
  }
}

// Without the second barrier a warp that is ahead overwrites the number that others have yet to read.
TEST(CudaEmulationTest, AWarpThatRunsAheadShows) {
  for (const bool with_barrier : {true, false}) {
    int wrong = 0;
    EXPECT_EQ(emulation::run_grid({20, 1, 1}, {kThreads, 1, 1}, 1024,
                                  [&] {
                                    int& number = shared_memory<int>();
                                    for (int round = 0; round < 5; ++round) {
                                      if (threadIdx.x == 0) number = round;
                                      __syncthreads();
                                      wrong += number == round ? 0 : 1;
                                      if (with_barrier) __syncthreads();
                                      __syncwarp();
                                    }
                                  }),
              "");
    EXPECT_EQ(wrong == 0, with_barrier);
  }
}

TEST(CudaEmulationTest, BarriersThatNotAllReachAreErrors) {
  const auto half_waits = [] {
    if (threadIdx.x < 64) __syncthreads();
  };
  const auto two_barriers = [] {
    if (threadIdx.x < 64) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  const auto two_functions = [] {
    if (threadIdx.x % 2 == 0) {
      (void)__shfl_sync(kAllLanes, 1, 0);
    } else {
      __syncwarp();
    }
  };
  const auto one_lane = [] { (void)__shfl_sync(1u, 1, 0); };
  EXPECT_NE(run(half_waits).find("wait for others"), std::string::npos);
  EXPECT_NE(run(two_barriers).find("have parted"), std::string::npos);
  EXPECT_NE(run(two_functions).find("have parted"), std::string::npos);
  EXPECT_NE(run(one_lane).find("a part of a warp"), std::string::npos);
}

TEST(CudaEmulationTest, WarpFunctionsExchangeValues) {
  EXPECT_EQ(run([] {
              const int lane = static_cast<int>(threadIdx.x) % kWarp;
              EXPECT_EQ(__shfl_xor_sync(kAllLanes, lane, 5), lane ^ 5);
              EXPECT_EQ(__shfl_sync(kAllLanes, lane, 7), 7);
              EXPECT_EQ(warp_reduce(lane, Plus()), 496);
            }),
            "");
}

TEST(CudaEmulationTest, SharedMemoryIsUninitialisedAndEndsWhereItWasAskedToEnd) {
  EXPECT_EQ(run([] { EXPECT_TRUE(std::isnan(shared_memory<float>())); }), "");
  EXPECT_NE(run([] {
              if (threadIdx.x == 0) shared_memory<float[300]>()[256] = 1.0f;
            }).find("past the shared memory"),
            std::string::npos);
}

TEST(CudaEmulationTest, AsynchronousCopiesAreMadeWhenTheyAreWaitedFor) {
  alignas(16) const float source[4] = {1.0f, 2.0f, 3.0f, 4.0f};
  EXPECT_EQ(run([&] {
              if (threadIdx.x != 0) return;
              auto& to = shared_memory<float[8]>();
              copy_async(to, source, false);
              commit_copies();
              copy_async(to + 4, source, true);
              commit_copies();
              EXPECT_TRUE(std::isnan(to[3]));
              wait_for_copies<1>();
              EXPECT_EQ(to[3], 4.0f);
              EXPECT_TRUE(std::isnan(to[7]));
              wait_for_copies<0>();
              EXPECT_EQ(to[7], 0.0f);
            }),
            "");
}

TEST(CudaEmulationTest, AsynchronousCopiesAreOfAlignedBytes) {
  alignas(16) const float source[8] = {};
  for (const auto& [to, from] : {std::pair{1, 0}, {0, 1}}) {
    EXPECT_NE(run([&] {
                copy_async(shared_memory<float[8]>() + to, source + from, false);
              }).find("not aligned"),
              std::string::npos);
  }
}

TEST(CudaEmulationTest, StreamsWorkInOrderAndOnlyWhenWaitedFor) {
  cudaStream_t first, second;
  cudaEvent_t event;
  ASSERT_EQ(cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  std::string log;
  const auto say = [&](cudaStream_t stream, char what) {
    emulation::queue(stream, [&log, what] {
      log += what;
      return std::string();
    });
  };
  say(first, 'a');
  ASSERT_EQ(cudaEventRecord(event, first), cudaSuccess);
  say(first, 'b');
  say(second, 'c');
  ASSERT_EQ(cudaStreamWaitEvent(second, event), cudaSuccess);
  say(second, 'd');
  EXPECT_EQ(log, "");
  ASSERT_EQ(cudaStreamSynchronize(second), cudaSuccess);
  EXPECT_EQ(log, "cad");
  ASSERT_EQ(cudaStreamDestroy(first), cudaSuccess);
  EXPECT_EQ(log, "cadb");
  (void)cudaStreamDestroy(second);
  (void)cudaEventDestroy(event);
}

cudaMemPool_t make_pool() {
  cudaMemPool_t pool;
  const cudaMemPoolProps properties = {};
  EXPECT_EQ(cudaMemPoolCreate(&pool, &properties), cudaSuccess);
  return pool;
}

// Freed memory is there again before the stream has come to the end of its first use, for work of the same stream alone.
TEST(CudaEmulationTest, MemoryIsUsedAgainAtOnceInTheOrderOfItsStream) {
  cudaStream_t stream, other;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  cudaMemPool_t pool = make_pool();
  const auto allocate = [&](std::size_t bytes, cudaStream_t on) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMallocFromPoolAsync(&memory, bytes, pool, on), cudaSuccess);
    return static_cast<unsigned char*>(memory);
  };
  unsigned char* const first = allocate(100, stream);
  EXPECT_TRUE(emulation::is_allocated(first, 100));
  EXPECT_FALSE(emulation::on_device(first, 1)) << "the stream has yet to come to it";
  std::string seen;
  const auto look = [&] {
    emulation::queue(stream, [&seen, first] {
      seen += first[0] == 7 ? "7" : first[0] == 0xff ? "n" : "?";
      return std::string();
    });
  };
  ASSERT_EQ(cudaMemsetAsync(first, 7, 100, stream), cudaSuccess);
  look();
  ASSERT_EQ(cudaFreeAsync(first, stream), cudaSuccess);
  EXPECT_NE(allocate(50, other), first);
  EXPECT_NE(allocate(101, stream), first);
  EXPECT_EQ(allocate(50, stream), first);
  look();
  EXPECT_EQ(seen, "");
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(seen, "7n");
  EXPECT_TRUE(emulation::on_device(first, 50));
  EXPECT_FALSE(emulation::on_device(first, 51));
  ASSERT_EQ(cudaFreeAsync(first, stream), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
  EXPECT_EQ(allocate(80, other), first) << "now it is free for every stream";
  ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
  ASSERT_EQ(cudaStreamDestroy(other), cudaSuccess);
  ASSERT_EQ(cudaMemPoolDestroy(pool), cudaSuccess);
}

// c = a b for a of 16 x 16 and b of 16 x 8, the fragments taken by hand from the header's table.
TEST(CudaEmulationTest, TensorCoresMultiplyByTheLayoutOfTheManual) {
  const auto a_at = [](int row, int col) {
    return static_cast<float>((row * 3 + col * 5) % 7 - 3);
  };
  const auto b_at = [](int row, int col) {
    return static_cast<float>((row * 2 + col * 3) % 5 - 2);
  };
  EXPECT_EQ(run([&] {
              const int g = static_cast<int>(threadIdx.x) % kWarp / 4;
              const int t = static_cast<int>(threadIdx.x) % 4;
              const auto a_pair = [&](int row, int col) {
                return pack_bfloat16(a_at(row, col), a_at(row, col + 1));
              };
              const auto b_pair = [&](int row, int col) {
                return pack_bfloat16(b_at(row, col), b_at(row + 1, col));
              };
              const unsigned a[4] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t), a_pair(g, 2 * t + 8),
                                     a_pair(g + 8, 2 * t + 8)};
              float c[4] = {1.0f, 1.0f, 1.0f, 1.0f};
              multiply_add(c, a, b_pair(2 * t, g), b_pair(2 * t + 8, g));
              for (int i = 0; i < 4; ++i) {
                const int row = g + i / 2 * 8;
                const int col = 2 * t + i % 2;
                float want = 1.0f;
                for (int k = 0; k < 16; ++k) want += a_at(row, k) * b_at(k, col);
                EXPECT_EQ(c[i], want) << row << ", " << col;
              }
            }),
            "");
}

}  // namespace
}  // namespace roundhouse
