#include "stages/quantize/gptq/hessian.h"

#include "stages/flow/dropped_samples.h"

namespace roundhouse {

std::vector<double> hessian_bands(std::int64_t cols) {
  return ShardMatrixSum::bands(cols, cols, ShardMatrixSum::Part::kLowerTriangle);
}

HessianCollector::HessianCollector(const BlockSite& task, int group, PhaseClock& clock)
    : task_(task),
      group_(task.decoder.shared_inputs()[group]),
      owner_(group % task.team.size()),
      clock_(clock),
      sum_(task.device_team, task.backend, task.samples->shards(), group_.cols, group_.cols,
           ShardMatrixSum::Part::kLowerTriangle) {}

void HessianCollector::begin_shard() { sum_.begin_shard(); }

void HessianCollector::add(ConstMatrix input, const MicroBatch& batch) {
  std::vector<std::uint8_t> finite(static_cast<std::size_t>(batch.sequences));
  task_.backend.check_finite({.x = input, .rows_each = batch.length, .finite = finite});
  for_each_finite_run(finite, [&](std::int64_t begin, std::int64_t end) {
    task_.backend.gram(
        {.x = input.row_range(begin * batch.length, end * batch.length), .h = sum_.matrix()});
  });
  for (std::int64_t s = 0; s < batch.sequences; ++s) {
    if (finite[s] == 0) dropped_.push_back(batch.first_sample + s);
  }
}

void HessianCollector::end_shard(int shard) { sum_.end_shard(shard); }

Tensor HessianCollector::finish(nlohmann::json& block_record) {
  const std::int64_t used = settle_dropped(task_, group_.name, dropped_, block_record);
  Tensor hessian;
  clock_.measure("gram", [&] {
    hessian = sum_.finish(owner_);
    if (hessian.empty()) return;
    task_.backend.symmetrize(hessian.view());
    task_.backend.scale(2.0f / static_cast<float>(used), hessian.view());
  });
  const double tokens = static_cast<double>(used) * static_cast<double>(task_.samples->length());
  const auto n = static_cast<double>(group_.cols);
  clock_.count("gram", tokens * n * n);
  return hessian;
}

}  // namespace roundhouse
