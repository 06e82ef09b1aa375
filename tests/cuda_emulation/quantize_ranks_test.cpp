// Quantizing on emulated GPUs has the same bits on any number of ranks, over messages that know nothing of what is queued
// (device_transport.cpp).
#include <gtest/gtest.h>

#include "model/synthetic.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/cuda_emulation/small_shape.h"
#include "tests/stages/same_results.h"

namespace roundhouse {
namespace {

class EmulatedRanksTest : public testing::TestWithParam<const char*> {};

TEST_P(EmulatedRanksTest, HaveTheBitsOfOne) {
  const auto recipe = nlohmann::json::parse(GetParam());
  const TemporaryFolder folder;  // each rank's own
  write_synthetic_model({.config = small_shape(), .tokenizer = {}}, folder.path() / "model");
  const auto local = make_local_communicator();
  const auto world = [&](Communicator& ranks) {
    return std::make_unique<QuantizeWorld>(ranks, /*shards=*/5, /*threads=*/1, std::vector<int>(),
                                           /*length=*/8, folder.path() / "model", "cuda");
  };
  const auto team = world(test_world());
  expect_same_results([&] { return world(*local); }, *team, recipe);
}

INSTANTIATE_TEST_SUITE_P(
    Methods, EmulatedRanksTest,
    testing::Values(
        R"({"method": "rtn", "bits": 3})", R"({"method": "gptq", "bits": 3, "group_size": 64})",
        R"({"method": "gptq", "bits": 3, "act_order": "dynamic", "true_sequential": false})",
        R"({"method": "awq", "bits": 3, "group_size": 64, "grid_points": 3})",
        R"({"method": "signround", "bits": 2, "group_size": 64, "iterations": 4})"),
    [](const auto& test) {
      return nlohmann::json::parse(test.param).at("method").template get<std::string>() + "_" +
             std::to_string(test.index);
    });

}  // namespace
}  // namespace roundhouse
