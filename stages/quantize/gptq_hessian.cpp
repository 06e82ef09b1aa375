#include "stages/quantize/gptq_hessian.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

// A Gram matrix in host memory, where the team's messages are. Only the lower triangle counts.
class HostGram final : public Summand {
 public:
  explicit HostGram(std::int64_t n) : matrix_(DType::kF32, {n, n}) {}

  std::span<std::byte> bytes() override { return matrix_.bytes(); }
  void add(Summand& other) override {
    const std::span<float> into = matrix_.as<float>();
    const auto from = std::as_const(static_cast<HostGram&>(other).matrix_).as<float>();
    for (std::size_t i = 0; i < into.size(); ++i) into[i] += from[i];
  }
  HostTensor& matrix() { return matrix_; }

 private:
  HostTensor matrix_;
};

}  // namespace

HessianCollector::HessianCollector(const BlockTask& task, int group, PhaseClock& clock)
    : task_(task),
      group_(task.shape.groups()[static_cast<std::size_t>(group)]),
      owner_(group % task.team.size()),
      clock_(clock),
      sum_(task.team, task.samples->shards(),
           [n = group_.cols] { return std::make_unique<HostGram>(n); }) {}

void HessianCollector::begin_shard() {
  gram_ = Tensor(task_.backend, DType::kF32, group_.cols, group_.cols);
  task_.backend.zero(gram_.view());
}

void HessianCollector::add(ConstMatrix input, const MicroBatch& batch) {
  std::vector<std::uint8_t> finite(static_cast<std::size_t>(batch.sequences));
  task_.backend.check_finite({.x = input, .rows_each = batch.length, .finite = finite});

  // Each run of finite samples is one Gram call.
  const auto is_finite = [&](std::int64_t s) { return finite[static_cast<std::size_t>(s)] != 0; };
  for (std::int64_t s = 0; s < batch.sequences;) {
    if (!is_finite(s)) {
      dropped_.push_back(batch.first_sample + s++);
      continue;
    }
    std::int64_t end = s + 1;
    while (end < batch.sequences && is_finite(end)) ++end;
    task_.backend.gram(
        {.x = input.row_range(s * batch.length, end * batch.length), .h = gram_.view()});
    s = end;
  }
}

void HessianCollector::end_shard(int shard) {
  auto part = std::make_unique<HostGram>(group_.cols);
  task_.backend.download(gram_.f32(), part->bytes());
  gram_ = {};
  sum_.add(shard, std::move(part));
}

std::int64_t HessianCollector::settle_dropped(nlohmann::json& block_record) {
  std::vector<std::int64_t> dropped;
  for (const std::vector<std::byte>& message :
       task_.team.all_gather(std::as_bytes(std::span(dropped_)))) {
    std::vector<std::int64_t> theirs(message.size() / sizeof(std::int64_t));
    std::ranges::copy(message, std::as_writable_bytes(std::span(theirs)).begin());
    dropped.insert(dropped.end(), theirs.begin(), theirs.end());
  }
  const std::int64_t samples = task_.samples->count();
  const auto count = static_cast<std::int64_t>(dropped.size());
  if (count == 0) return samples;

  const std::string what = "block " + std::to_string(task_.block) + ", " + group_.name + ": " +
                           std::to_string(count) + " of " + std::to_string(samples) +
                           " samples have inputs that are not finite";
  if (10 * count > samples) throw Error(what + "; more than a tenth cannot be left out");
  std::ranges::sort(dropped);
  block_record["dropped_samples"].push_back(
      {{"linears", group_.name}, {"count", count}, {"samples", dropped}});
  if (task_.team.rank() == 0) task_.monitor.say(what + " and were left out");
  return samples - count;
}

HostTensor HessianCollector::finish(nlohmann::json& block_record) {
  const std::int64_t used = settle_dropped(block_record);
  HostTensor hessian;
  clock_.measure("gram", [&] {
    const std::unique_ptr<Summand> sum = sum_.finish(owner_);
    if (!sum) return;
    hessian = std::move(static_cast<HostGram&>(*sum).matrix());
    const float scale = 2.0f / static_cast<float>(used);
    for (float& h : hessian.as<float>()) h *= scale;
    Tensor mirrored = Tensor::upload(task_.backend, hessian.view(), DType::kF32);
    task_.backend.symmetrize(mirrored.view());
    task_.backend.download(mirrored.f32(), hessian.bytes());
  });
  const double tokens = static_cast<double>(used) * static_cast<double>(task_.samples->length());
  const auto n = static_cast<double>(group_.cols);
  clock_.count("gram", tokens * n * n);
  return hessian;
}

}  // namespace roundhouse
