#include "stages/quantize/method.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/quote.h"
#include "stages/quantize/awq/awq.h"
#include "stages/quantize/gptq/gptq.h"
#include "stages/quantize/rtn/rtn.h"
#include "stages/quantize/signround/signround.h"

namespace roundhouse {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Method> (*make)(int bits, std::int64_t group_size, OptionReader& options);
};

// Every method there is.
constexpr Entry kMethods[] = {
    {"rtn", make_rtn},
    {"gptq", make_gptq},
    {"awq", make_awq},
    {"signround", make_signround},
};

}  // namespace

std::unique_ptr<Method> make_method(const std::string& method, int bits, std::int64_t group_size,
                                    OptionReader& options) {
  std::string known;
  for (const Entry& entry : kMethods) {
    if (entry.name == method) return entry.make(bits, group_size, options);
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw RecipeError{"method", in_quotes(method) + " is not one of " + known};
}

std::unique_ptr<Method> make_method(const Recipe& recipe) {
  OptionReader options(recipe.options);
  std::unique_ptr<Method> method =
      make_method(recipe.method, recipe.bits, recipe.group_size, options);
  options.finish();
  return method;
}

std::vector<MicroBatch> micro_batches_of_shard(const Samples& samples, int shard) {
  const PartRange range = samples.samples_of_shard(shard);
  std::vector<MicroBatch> batches;
  for (std::int64_t first = range.begin; first < range.end; first += samples.micro_batch()) {
    batches.push_back(
        {.shard = shard,
         .first_sample = first,
         .sequences = std::min<std::int64_t>(samples.micro_batch(), range.end - first),
         .length = samples.length(),
         .first_row = (first - range.begin) * samples.length()});
  }
  return batches;
}

PartRange shards_of_rank(const BlockTask& task) {
  return parts_of_rank(task.samples->shards(), task.team.rank(), task.team.size());
}

BlockState load_state(const BlockTask& task, const Activations& stream, const MicroBatch& batch) {
  return state_of(batch, stream.load(batch.shard, batch.first_row, batch.rows(), task.backend));
}

BlockState state_of(const MicroBatch& batch, Tensor residual) {
  BlockState state;
  state.residual = std::move(residual);
  state.sequences = batch.sequences;
  state.length = batch.length;
  return state;
}

void run_forward(const BlockTask& task, const BlockWeights& weights, Activations& stream) {
  require(task.samples != nullptr, "a forward pass needs samples");
  BatchReader reader(task, {&stream});
  while (!reader.at_end()) {
    const MicroBatch batch = reader.batch();
    BlockState state = state_of(batch, std::move(reader.next().front()));
    task.shape.forward(weights, state, task.backend);
    stream.store_behind(batch.shard, batch.first_row, state.residual.view(), task.backend);
    task.monitor.tick();
  }
  task.backend.finish_downloads();
}

BatchReader::BatchReader(const BlockTask& task, std::vector<const Activations*> from)
    : task_(task), from_(std::move(from)) {
  const PartRange shards = shards_of_rank(task);
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    const auto batches = micro_batches_of_shard(*task.samples, shard);
    batches_.insert(batches_.end(), batches.begin(), batches.end());
  }
  load_ahead();
}

void BatchReader::load_ahead() {
  ahead_.clear();
  if (at_end()) return;
  for (const Activations* activations : from_) {
    ahead_.push_back(
        activations->load_ahead(batch().shard, batch().first_row, batch().rows(), task_.backend));
  }
}

std::vector<Tensor> BatchReader::next() {
  require(!at_end(), "there is no further micro-batch");
  std::vector<Activations::Loading> now = std::move(ahead_);
  ++at_;
  load_ahead();
  std::vector<Tensor> rows;
  for (Activations::Loading& loading : now) {
    task_.backend.await_upload(loading.ticket);
    rows.push_back(std::move(loading.rows));
  }
  return rows;
}

}  // namespace roundhouse
