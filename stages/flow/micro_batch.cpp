#include "stages/flow/micro_batch.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace roundhouse {

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

PartRange shards_of_rank(const BlockSite& site) {
  return parts_of_rank(site.samples->shards(), site.team.rank(), site.team.size());
}

std::vector<MicroBatch> micro_batches_of_rank(const BlockSite& site) {
  std::vector<MicroBatch> all;
  const PartRange shards = shards_of_rank(site);
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    const std::vector<MicroBatch> batches = micro_batches_of_shard(*site.samples, shard);
    all.insert(all.end(), batches.begin(), batches.end());
  }
  return all;
}

BlockState state_of(const MicroBatch& batch, Tensor residual) {
  BlockState state;
  state.residual = std::move(residual);
  state.sequences = batch.sequences;
  state.length = batch.length;
  return state;
}

BatchReader::BatchReader(std::vector<MicroBatch> batches, std::vector<const Activations*> from,
                         Backend& backend)
    : batches_(std::move(batches)), from_(std::move(from)), backend_(backend) {
  load_ahead();
}

void BatchReader::load_ahead() {
  ahead_.clear();
  if (at_end()) return;
  for (const Activations* activations : from_) {
    ahead_.push_back(
        activations->load_ahead(batch().shard, batch().first_row, batch().rows(), backend_));
  }
}

std::vector<Tensor> BatchReader::next() {
  require(!at_end(), "there is no further micro-batch");
  std::vector<Activations::Loading> now = std::move(ahead_);
  ++at_;
  load_ahead();
  std::vector<Tensor> rows;
  for (Activations::Loading& loading : now) {
    rows.push_back(loading.finish(backend_));
  }
  return rows;
}

void for_each_micro_batch(const BlockSite& site, std::vector<const Activations*> from,
                          const BatchWalk& walk) {
  BatchReader reader(micro_batches_of_rank(site), std::move(from), site.backend);
  const PartRange shards = shards_of_rank(site);
  for (int shard = shards.begin; shard < shards.end; ++shard) {
    if (walk.begin) walk.begin(shard);
    while (!reader.at_end() && reader.batch().shard == shard) {
      const MicroBatch batch = reader.batch();
      walk.visit(batch, reader.next());
      site.monitor.tick();
    }
    if (walk.end) walk.end(shard);
  }
}

void embed_shard(const CausalLM& model, const Samples& samples, int shard,
                 const std::vector<Activations*>& into, Backend& backend, Monitor& monitor) {
  for (const MicroBatch& batch : micro_batches_of_shard(samples, shard)) {
    const Tensor rows =
        model.embed(samples.ids(batch.first_sample, batch.sequences), batch.length, backend);
    for (Activations* const stream : into)
      stream->store(shard, batch.first_row, rows.view(), backend);
    monitor.tick();
  }
}

void run_forward(const DecoderBlock& decoder, const BlockWeights& weights,
                 std::vector<MicroBatch> batches, const Activations& from, Activations& to,
                 Backend& backend, Monitor& monitor) {
  BatchReader reader(std::move(batches), {&from}, backend);
  while (!reader.at_end()) {
    const MicroBatch batch = reader.batch();
    BlockState state = state_of(batch, std::move(reader.next().front()));
    decoder.forward(weights, state, backend);
    to.store_behind(batch.shard, batch.first_row, state.residual.view(), backend);
    monitor.tick();
  }
  backend.finish_downloads();
}

void run_forward(const BlockSite& site, const BlockWeights& weights, Activations& stream) {
  run_forward(site, weights, stream, stream);
}

void run_forward(const BlockSite& site, const BlockWeights& weights, const Activations& from,
                 Activations& to) {
  require(site.samples != nullptr, "a forward pass needs samples");
  run_forward(site.decoder, weights, micro_batches_of_rank(site), from, to, site.backend,
              site.monitor);
}

}  // namespace roundhouse
