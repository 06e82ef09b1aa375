// What a block costs on a GPU besides its operations: kernels, waits of the host, bytes copied. Counted on the emulation, so that a
// change that adds to them is seen, and compared with what the backend of tests/bench/reckoning/ notes, which the reckoned seconds
// of whole models are made of.
//
// Where a count changes on purpose: the failing test prints the line of the table anew; docs/gpu.md has the same table.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "model/synthetic.h"
#include "tests/base/temporary_folder.h"
#include "tests/bench/reckoning/reckoned_block.h"
#include "tests/bench/reckoning/recording_backend.h"
#include "tests/cuda_emulation/calls.h"
#include "tests/cuda_emulation/small_shape.h"

namespace roundhouse {
namespace {

constexpr int kSamples = 8, kLength = 8;

struct Expected {
  const char* name;
  const char* recipe;
  DeviceCounts counts;
};
std::string line_of(const char* name, const DeviceCounts& counts) {
  return std::string(name) + ": {" + std::to_string(counts.kernels) + ", " +
         std::to_string(counts.waits) + ", " + std::to_string(counts.bytes_up) + ", " +
         std::to_string(counts.bytes_ahead) + ", " + std::to_string(counts.bytes_down) + "}";
}

// Kernels, waits, bytes to the device, those of them beside the kernels, bytes from it.
const Expected kExpected[] = {
    {"rtn", R"({"method": "rtn", "group_size": 64})", {91, 85, 0, 0, 200360}},
    {"gptq", R"({"method": "gptq", "group_size": 64})", {444, 383, 263360, 40960, 236788}},
    {"gptq_at_once",
     R"({"method": "gptq", "group_size": 64, "true_sequential": false})",
     {524, 337, 238784, 16384, 228596}},
    {"awq",
     R"({"method": "awq", "group_size": 64, "grid_points": 3})",
     {1308, 428, 37120, 16384, 239376}},
    {"signround",
     R"({"method": "signround", "group_size": 64, "iterations": 2})",
     {651, 153, 261056, 49152, 217768}},
};

class CountsTest : public testing::TestWithParam<Expected> {};

TEST_P(CountsTest, AreThoseOfTheTableAndOfTheReckoning) {
  const TemporaryFolder folder;
  write_synthetic_model({.config = small_shape(), .tokenizer = {}}, folder.path() / "model");
  const auto backend = make_backend("cuda", {});
  BlockRun block{.model = folder.path() / "model",
                 .samples = kSamples,
                 .length = kLength,
                 .recipe = nlohmann::json::parse(GetParam().recipe)};
  emulation::Calls before, after;
  block.begin = [&] { before = emulation::calls(); };
  block.end = [&] { after = emulation::calls(); };
  (void)run_block(block, *backend);
  const DeviceCounts counted{.kernels = after.kernels - before.kernels,
                             .waits = after.waits - before.waits,
                             .bytes_up = after.bytes_up - before.bytes_up,
                             .bytes_ahead = after.bytes_ahead - before.bytes_ahead,
                             .bytes_down = after.bytes_down - before.bytes_down};
  EXPECT_EQ(line_of(GetParam().name, counted), line_of(GetParam().name, GetParam().counts));

  write_hollow_model(small_shape(), folder.path() / "hollow");
  RecordingBackend reckoned{GpuRates()};
  block.model = folder.path() / "hollow";
  block.on_values = false;
  DeviceCounts noted;
  block.begin = [&] { reckoned.timeline().forget(); };
  block.end = [&] { noted = reckoned.timeline().counts(); };
  (void)run_block(block, reckoned);
  EXPECT_EQ(line_of("reckoned", noted), line_of("reckoned", counted));
}

INSTANTIATE_TEST_SUITE_P(Methods, CountsTest, testing::ValuesIn(kExpected),
                         [](const auto& test) { return std::string(test.param.name); });

// On a GPU, whose 16-bit products are cheaper by so much, a linear's candidates are judged by what its outputs change by for all
// tokens; on a CPU by the Gram matrix of its input. Both are the same sum.
TEST(AwqSearchTest, TokensSayWhatTheGramMatrixSays) {
  const TemporaryFolder folder;
  write_synthetic_model({.config = small_shape(), .tokenizer = {}}, folder.path() / "model");
  const BlockRun block{
      .model = folder.path() / "model",
      .samples = kSamples,
      .length = kLength,
      .recipe = nlohmann::json::parse(
          R"({"method": "awq", "bits": 3, "group_size": 64, "grid_points": 3, "clip_search": false})")};
  const BlockResult on_cpu = run_block(block, *make_backend("cpu", {.threads = 1}));
  const BlockResult on_gpu = run_block(block, *make_backend("cuda", {}));
  EXPECT_TRUE(on_cpu.record.at("flops").contains("gram"));
  EXPECT_FALSE(on_gpu.record.at("flops").contains("gram"));
  const nlohmann::json& want = on_cpu.record.at("scale_sets");
  const nlohmann::json& got = on_gpu.record.at("scale_sets");
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    for (const char* key : {"loss_before", "loss"}) {
      const double loss = want[i].at(key).get<double>();
      EXPECT_NEAR(got[i].at(key).get<double>(), loss, 0.03 * loss) << want[i] << got[i];
    }
  }
  // The operations that the planner has, too.
  for (const BlockResult* result : {&on_cpu, &on_gpu}) {
    for (const auto& [phase, flops] : result->cost.flops)
      EXPECT_NEAR(result->record.at("flops").at(phase).get<double>(), flops, 1e-9 * flops) << phase;
  }
}

}  // namespace
}  // namespace roundhouse
