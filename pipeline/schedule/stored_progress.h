// Progress inside blocks (block_progress.h) as records, one a part:
//
//   recipes/RECIPE/progress/block-0007/step-000120/PART
//
// The first part says what the step was made of and by (unit.h), and no other model or device goes on from it.
// Written by time, as snapshots are; removed when the block is committed.
#pragma once

#include <chrono>
#include <string>

#include "comm/communicator.h"
#include "pipeline/schedule/snapshots.h"
#include "stages/flow/monitor.h"
#include "stages/quantize/block_progress.h"

namespace roundhouse {

class StoredProgress final : public BlockProgress {
 public:
  // Time counts from here. `timing`: what is known of the speed of writing.
  // `origin`: attributes that say what blocks are made of and by; called on the team's rank 0.
  StoredProgress(const std::string& recipe, int block, RunStore& store, Communicator& team,
                 Monitor& monitor, SnapshotTiming& timing, std::function<nlohmann::json()> origin);

  std::optional<int> newest(const std::vector<std::string>& parts) override;
  Record load(int step, const std::string& part) override;
  bool due(double bytes) override;
  void write(int step, const std::vector<std::string>& mine,
             const std::function<Record(std::size_t part)>& make) override;

 private:
  std::string key(int step, const std::string& part) const;

  std::string folder_;
  int block_;
  RunStore& store_;
  Communicator& team_;
  Monitor& monitor_;
  SnapshotTiming& timing_;
  std::function<nlohmann::json()> origin_;
  std::chrono::steady_clock::time_point counted_ = std::chrono::steady_clock::now();
};

// On one rank, once a block is committed.
void remove_progress(const std::string& recipe, int block, RunStore& store);
// On one rank, while nobody writes any: removes that of all but these recipes, and of blocks that are done.
void remove_unused_progress(const std::vector<std::string>& unfinished, RunStore& store);

}  // namespace roundhouse
