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

namespace roundhouse {
namespace {

constexpr int kSamples = 8, kLength = 8;

// Linears of up to four tiles of rows, and seven panels of columns.
ModelConfig small_shape() {
  ModelConfig config = shape_like("tiny-world");
  config.hidden_size = config.embedding_size = 64;
  config.intermediate_size = 832;
  config.heads = config.kv_heads = 2;
  config.head_dim = 32;
  config.blocks = 1;
  return config;
}

struct Expected {
  const char* name;
  const char* recipe;
  DeviceCounts counts;
};
std::string line_of(const char* name, const DeviceCounts& counts) {
  return std::string(name) + ": {" + std::to_string(counts.kernels) + ", " +
         std::to_string(counts.waits) + ", " + std::to_string(counts.bytes_up) + ", " +
         std::to_string(counts.bytes_down) + "}";
}

// Kernels, waits, bytes to the device, bytes from it.
const Expected kExpected[] = {
    {"rtn", R"({"method": "rtn", "group_size": 64})", {91, 85, 0, 200360}},
    {"gptq", R"({"method": "gptq", "group_size": 64})", {444, 383, 378048, 351476}},
    {"gptq_at_once",
     R"({"method": "gptq", "group_size": 64, "true_sequential": false})",
     {524, 337, 238784, 228596}},
    {"awq", R"({"method": "awq", "group_size": 64, "grid_points": 3})", {1239, 372, 37120, 239376}},
    {"signround",
     R"({"method": "signround", "group_size": 64, "iterations": 2})",
     {703, 153, 261056, 217768}},
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

}  // namespace
}  // namespace roundhouse
