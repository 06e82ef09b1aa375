#include "stages/quantize/signround/batch.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kPartTokens = 1024;
constexpr int kLeastParts = 4;

// Blocks see different batches of one seed.
std::uint64_t seed_of_block(std::uint64_t seed, int block) {
  return Random(seed + (static_cast<std::uint64_t>(block) << 32)).next();
}

}  // namespace

BatchSampler::BatchSampler(Sampling sampling, int samples, int batch_size, std::uint64_t seed,
                           int block)
    : sampling_(sampling),
      size_(static_cast<std::size_t>(std::min(samples, batch_size))),
      random_(seed_of_block(seed, block)),
      order_(static_cast<std::size_t>(samples)),
      used_(order_.size()) {
  require(samples > 0 && batch_size > 0, "a batch without a sample");
  std::iota(order_.begin(), order_.end(), 0);
}

std::vector<int> BatchSampler::next() {
  if (sampling_ == Sampling::kIndependent || order_.size() - used_ < size_) {
    random_.shuffle(order_);
    used_ = 0;
  }
  const auto begin = order_.begin() + static_cast<std::ptrdiff_t>(used_);
  used_ += size_;
  return {begin, begin + static_cast<std::ptrdiff_t>(size_)};
}

int parts_of_batch(int batch_size, std::int64_t length) {
  const auto each = static_cast<int>(
      std::clamp<std::int64_t>(kPartTokens / length, 1, std::max(1, batch_size / kLeastParts)));
  return (batch_size + each - 1) / each;
}

BatchLoader::BatchLoader(const BlockTask& task, Activations& input, Activations& target)
    : task_(task),
      input_(input),
      target_(target),
      sample_bytes_(static_cast<std::size_t>(task.samples->length() * input.cols()) *
                    size_of(input.type())) {
  require(input.type() == target.type() && input.cols() == target.cols(),
          "the two streams of a batch have different types");
}

int BatchLoader::holder_of(int sample) const {
  const Samples& samples = *task_.samples;
  const int shard = rank_of_part(static_cast<int>(samples.count()), sample, samples.shards());
  return rank_of_part(samples.shards(), shard, task_.team.size());
}

BatchLoader::Rows BatchLoader::rows_of(Activations& stream, int sample) const {
  const Samples& samples = *task_.samples;
  const int shard = rank_of_part(static_cast<int>(samples.count()), sample, samples.shards());
  const auto first = static_cast<std::size_t>(sample - samples.samples_of_shard(shard).begin);
  return stream.bytes(shard).subspan(first * sample_bytes_, sample_bytes_);
}

void BatchLoader::fetch(const std::vector<int>& batch, int parts) {
  const int rank = task_.team.rank(), size = task_.team.size();
  const int batch_size = static_cast<int>(batch.size());
  std::vector<Send> sends;
  std::vector<Receive> receives;
  turn_ = 1 - turn_;
  std::vector<std::vector<std::byte>>& received = received_[turn_];
  std::size_t buffers = 0;
  const auto buffer = [&]() -> Rows {
    if (buffers == received.size()) received.emplace_back(sample_bytes_);
    return received[buffers++];
  };
  for (int part = 0; part < parts; ++part) {
    const int worker = rank_of_part(parts, part, size);
    const PartRange slots = parts_of_rank(batch_size, part, parts);
    Waiting mine{.part = part, .slots = {}};
    for (int s = slots.begin; s < slots.end; ++s) {
      const int sample = batch[s];
      const int holder = holder_of(sample);
      if (holder == rank && worker == rank) {
        mine.slots.push_back({rows_of(input_, sample), rows_of(target_, sample)});
      } else if (holder == rank) {
        sends.push_back({rows_of(input_, sample), worker});
        sends.push_back({rows_of(target_, sample), worker});
      } else if (worker == rank) {
        mine.slots.push_back({buffer(), buffer()});
        receives.push_back({mine.slots.back().input, holder});
        receives.push_back({mine.slots.back().target, holder});
      }
    }
    if (worker == rank) waiting_.push_back(std::move(mine));
  }
  if (size > 1) task_.team.start(sends, receives)->wait();
}

void BatchLoader::load_ahead() {
  if (waiting_.empty()) return;
  const Waiting next = std::move(waiting_.front());
  waiting_.pop_front();
  const std::int64_t length = task_.samples->length(), sequences = std::ssize(next.slots);
  Loading loading{
      .part = {.part = next.part,
               .sequences = sequences,
               .input = Tensor(task_.backend, input_.type(), sequences * length, input_.cols()),
               .target = Tensor(task_.backend, input_.type(), sequences * length, input_.cols())},
      .tickets = {}};
  for (std::int64_t s = 0; s < sequences; ++s) {
    const Slot& slot = next.slots[s];
    const auto copy = [&](Rows from, Tensor& to) {
      const Matrix rows = to.view().row_range(s * length, (s + 1) * length);
      loading.tickets.push_back(task_.backend.upload_ahead(from, rows.data));
    };
    copy(slot.input, loading.part.input);
    copy(slot.target, loading.part.target);
  }
  loading_ = std::move(loading);
}

BatchPart BatchLoader::next() {
  if (!loading_) load_ahead();
  require(loading_.has_value(), "there is no further part of a batch");
  Loading now = std::move(*loading_);
  loading_.reset();
  load_ahead();
  for (const Memory::UploadTicket ticket : now.tickets) task_.backend.await_upload(ticket);
  return std::move(now.part);
}

}  // namespace roundhouse
