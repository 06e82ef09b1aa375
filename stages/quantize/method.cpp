#include "stages/quantize/method.h"

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "stages/quantize/awq.h"
#include "stages/quantize/gptq.h"
#include "stages/quantize/rtn.h"
#include "stages/quantize/signround.h"

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
  throw RecipeError{"method", "'" + method + "' is not one of " + known};
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
  BlockState state;
  state.residual = stream.load(batch.shard, batch.first_row, batch.rows(), task.backend);
  state.sequences = batch.sequences;
  state.length = batch.length;
  return state;
}

void run_forward(const BlockTask& task, const BlockWeights& weights, Activations& stream) {
  require(task.samples != nullptr, "a forward pass needs samples");
  const PartRange shards = shards_of_rank(task);
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    for (const MicroBatch& batch : micro_batches_of_shard(*task.samples, shard)) {
      BlockState state = load_state(task, stream, batch);
      task.shape.forward(weights, state, task.backend);
      stream.store(shard, batch.first_row, state.residual.view(), task.backend);
      task.monitor.tick();
    }
  }
}

}  // namespace roundhouse
