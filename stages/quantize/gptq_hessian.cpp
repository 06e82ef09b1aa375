#include "stages/quantize/gptq_hessian.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kBand = 512;  // rows

// Calls visit(band) with the parts of the lower triangle (and a little above it) of an n x n matrix that cover it.
template <class Visit>
void for_each_band(std::int64_t n, Visit visit) {
  for (std::int64_t begin = 0; begin < n; begin += kBand) {
    const std::int64_t end = std::min(begin + kBand, n);
    visit([begin, end](auto matrix) { return matrix.row_range(begin, end).col_range(0, end); });
  }
}

}  // namespace

// A Gram matrix in the backend's memory, moved by the device team. Only the lower triangle counts;
// above it may be anything. Matrices of 70B models are gigabytes: the memory of one that is used up serves the next.
class HessianCollector::GramSum final : public Summand {
 public:
  GramSum(Backend& backend, std::int64_t n, std::vector<Tensor>& spare)
      : backend_(backend), spare_(spare) {
    if (spare.empty()) {
      matrix_ = Tensor(backend, DType::kF32, n, n);
    } else {
      matrix_ = std::move(spare.back());
      spare.pop_back();
    }
  }
  ~GramSum() override {
    if (!matrix_.empty()) spare_.push_back(std::move(matrix_));
  }

  std::span<std::byte> bytes() override {
    backend_.sync();
    return {static_cast<std::byte*>(matrix_.view().data), matrix_.bytes()};
  }
  void add(Summand& other) override {
    Tensor& from = static_cast<GramSum&>(other).matrix_;
    for_each_band(matrix_.rows(),
                  [&](auto band) { backend_.add(band(from.view()), band(matrix_.view())); });
  }
  void clear() {
    for_each_band(matrix_.rows(), [&](auto band) { backend_.zero(band(matrix_.view())); });
  }
  Tensor& matrix() { return matrix_; }

 private:
  Backend& backend_;
  std::vector<Tensor>& spare_;
  Tensor matrix_;
};

HessianCollector::HessianCollector(const BlockTask& task, int group, PhaseClock& clock)
    : task_(task),
      group_(task.shape.groups()[static_cast<std::size_t>(group)]),
      owner_(group % task.team.size()),
      clock_(clock),
      sum_(task.device_team, task.samples->shards(),
           [this] { return std::make_unique<GramSum>(task_.backend, group_.cols, spare_); }) {}

HessianCollector::~HessianCollector() = default;

void HessianCollector::begin_shard() {
  gram_ = std::make_unique<GramSum>(task_.backend, group_.cols, spare_);
  gram_->clear();
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
        {.x = input.row_range(s * batch.length, end * batch.length), .h = gram_->matrix().view()});
    s = end;
  }
}

void HessianCollector::end_shard(int shard) { sum_.add(shard, std::move(gram_)); }

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

Tensor HessianCollector::finish(nlohmann::json& block_record) {
  const std::int64_t used = settle_dropped(block_record);
  Tensor hessian;
  clock_.measure("gram", [&] {
    const std::unique_ptr<Summand> sum = sum_.finish(owner_);
    if (!sum) return;
    hessian = std::move(static_cast<GramSum&>(*sum).matrix());
    spare_.clear();
    task_.backend.symmetrize(hessian.view());
    task_.backend.scale(2.0f / static_cast<float>(used), hessian.view());
  });
  const double tokens = static_cast<double>(used) * static_cast<double>(task_.samples->length());
  const auto n = static_cast<double>(group_.cols);
  clock_.count("gram", tokens * n * n);
  return hessian;
}

}  // namespace roundhouse
