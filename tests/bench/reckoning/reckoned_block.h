// One block through a method, as a run drives it, on any backend: one that only reckons, or an emulated one whose calls are counted.
#pragma once

#include <filesystem>
#include <functional>

#include <nlohmann/json.hpp>

#include "kernels/backend.h"
#include "model/model_config.h"
#include "stages/quantize/block_cost.h"

namespace roundhouse {

struct BlockRun {
  std::filesystem::path model;
  int samples, length;
  nlohmann::json recipe;
  bool on_values = true;  // streams have values, which takes the host's memory and time
  // What the method does lies between them: the block is loaded and the streams are there, and all still is.
  std::function<void()> begin = [] {}, end = [] {};
};
struct BlockResult {
  nlohmann::json record;  // with seconds and operations by phase
  BlockCost cost;         // as the planner has it
  double weights = 0;
};
BlockResult run_block(const BlockRun& run, Backend& backend);

// A model of zeros of this shape, a file without blocks on the disk.
void write_hollow_model(const ModelConfig& config, const std::filesystem::path& folder);

}  // namespace roundhouse
