#include "stages/evaluate/model_walk.h"

#include <algorithm>
#include <set>
#include <utility>

namespace roundhouse {
namespace {

// No fewer go in a portion than keep a ring busy, whatever the memory for activations: more than it holds goes to its scratch folder.
constexpr int kLeastBatchesARank = 2;

std::size_t bytes_of(const ModelWalk& walk, std::int64_t rows) {
  return static_cast<std::size_t>(rows * walk.decoder.hidden_size()) *
         size_of(walk.backend.activation_type());
}

}  // namespace

int WalkStages::blocks_of_rank(int rank) const {
  int count = 0;
  for (int stage = rank; stage < stages; stage += ranks)
    count += blocks_of(stage).end - blocks_of(stage).begin;
  return count;
}

WalkStages stages_of_walk(int blocks, int ranks, int blocks_at_once) {
  const int held = ranks * std::max(1, blocks_at_once);
  const int rounds = (blocks + held - 1) / held;
  return {.blocks = blocks, .ranks = ranks, .stages = std::min(blocks, rounds * ranks)};
}

struct WalkOfRank::Loaded {
  int stream, stage;
  std::vector<BlockWeights> blocks;
};

WalkOfRank::WalkOfRank(const ModelWalk& walk, std::vector<WalkBatch> batches)
    : walk_(walk),
      batches_(std::move(batches)),
      ring_(rank_of_part(walk.group.size(), walk.group.rank(), walk.shape.rings)),
      ranks_(walk.group.split(ring_, walk.group.rank())),
      stages_(stages_of_walk(static_cast<int>(walk.model.config().blocks), ranks_->size(),
                             walk.shape.blocks_at_once)),
      waiting_(walk.budget, walk.backend.activation_type(), walk.decoder.hidden_size()),
      leaving_(walk.budget, walk.backend.activation_type(), walk.decoder.hidden_size()),
      messages_(*ranks_, waiting_) {
  if (std::ranges::any_of(batches_, &WalkBatch::compared)) streams_.push_back(walk.reference);
  streams_.push_back(walk.weights);
  portions_ = cut_portions();
  for (const PartRange portion : portions_)
    most_items_ = std::max(most_items_, static_cast<int>(items_of(portion).size()));
}

WalkOfRank::~WalkOfRank() = default;

PartRange WalkOfRank::ranks_of(int ring) const {
  return parts_of_rank(walk_.group.size(), ring, walk_.shape.rings);
}

int WalkOfRank::owner(int batch) const {
  const PartRange ranks = ranks_of(ring_of(batch));
  return batch / walk_.shape.rings % (ranks.end - ranks.begin);
}

std::vector<int> WalkOfRank::visited_by(int rank, PartRange portion) const {
  std::vector<int> visited;
  for (int batch = portion.begin; batch < portion.end; ++batch) {
    if (ranks_of(ring_of(batch)).begin + owner(batch) == rank) visited.push_back(batch);
  }
  return visited;
}

// By what all ranks know alike. One rank may come to hold all batches of its ring.
std::vector<PartRange> WalkOfRank::cut_portions() const {
  const auto held = static_cast<std::size_t>(
      walk_.group.all_reduce_min(static_cast<std::int64_t>(walk_.budget.bytes())));
  const std::size_t most = held * static_cast<std::size_t>(walk_.shape.rings);
  const bool weights_stay = walk_.group.all_reduce_min(stages_.weights_stay() ? 1 : 0) != 0;
  const int least = kLeastBatchesARank * walk_.group.size();
  std::vector<PartRange> portions;
  std::size_t bytes = 0;
  for (int i = 0; i < static_cast<int>(batches_.size()); ++i) {
    const WalkBatch& batch = batches_[i];
    const std::size_t own = bytes_of(walk_, batch.batch.rows()) * (batch.compared ? 2 : 1);
    const bool fits = !portions.empty() &&
                      (bytes + own <= most || i - portions.back().begin < least) &&
                      !(weights_stay && batches_[i - 1].work != batch.work);
    if (!fits) {
      portions.push_back({i, i});
      bytes = 0;
    }
    portions.back().end = i + 1;
    bytes += own;
  }
  return portions;
}

std::vector<WalkOfRank::Item> WalkOfRank::items_of(PartRange portion) const {
  std::vector<Item> items;
  std::map<int, int> reference;  // by batch
  const int last = static_cast<int>(streams_.size()) - 1;
  for (int stream = 0; stream <= last; ++stream) {
    for (int batch = portion.begin; batch < portion.end; ++batch) {
      if (ring_of(batch) != ring_) continue;
      if (stream == last) {
        const auto before = reference.find(batch);
        items.push_back({stream, batch, before == reference.end() ? -1 : before->second});
      } else if (batches_[batch].compared) {
        reference[batch] = static_cast<int>(items.size());
        items.push_back({stream, batch, -1});
      }
    }
  }
  return items;
}

std::vector<WalkOfRank::Step> WalkOfRank::steps_of(const std::vector<Item>& items) const {
  std::vector<Step> steps;
  const int me = ranks_->rank(), last = stages_.stages - 1;
  for (int stage = me; stage <= last; stage += stages_.ranks) {
    for (int i = 0; i < static_cast<int>(items.size()); ++i) {
      steps.push_back({.stage = stage,
                       .item = i,
                       .from = stage == 0 ? -1 : stages_.rank_of(stage - 1),
                       .to = stage == last ? owner(items[i].batch) : stages_.rank_of(stage + 1)});
    }
  }
  for (int i = 0; i < static_cast<int>(items.size()); ++i) {
    if (owner(items[i].batch) != me) continue;
    steps.push_back({.stage = stages_.stages, .item = i, .from = stages_.rank_of(last), .to = -1});
  }
  return steps;
}

std::map<int, std::deque<BatchMessages::Expected>> WalkOfRank::expected(
    const std::vector<Step>& steps, const std::vector<Item>& items) const {
  std::map<int, std::deque<BatchMessages::Expected>> from;
  for (const Step& step : steps) {
    if (step.from < 0 || step.from == ranks_->rank()) continue;
    from[step.from].push_back({key(step.stage, step.item), batch_of(items[step.item]).rows()});
  }
  return from;
}

bool WalkOfRank::run(PartRange portion, const Visit& visit) {
  const std::vector<Item> items = items_of(portion);
  const std::vector<Step> steps = steps_of(items);
  messages_.expect(expected(steps, items));
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    walk_.monitor.tick();
    messages_.look();
    bool comes = !messages_.stopped() && !walk_.monitor.stop_requested();
    if (comes && step.stage < stages_.stages) (void)weights_of(items[step.item].stream, step.stage);
    if (comes && step.from >= 0 && step.from != ranks_->rank())
      comes = messages_.await(key(step.stage, step.item), step.from);
    if (!comes) {
      stop(std::span(steps).subspan(i), items);
      return false;
    }
    if (step.stage < stages_.stages) {
      go_through_stage(step, items[step.item]);
    } else {
      go_through_head(step, items, visit);
    }
  }
  if (!stages_.weights_stay()) {
    loaded_.clear();
    head_.reset();
    quantized_head_.reset();
  }
  return true;
}

const OuterLinears& WalkOfRank::outer() {
  if (!outer_) outer_ = walk_.outer ? walk_.outer() : OuterLinears{};
  return *outer_;
}

const CausalLM::Head& WalkOfRank::head_of(bool reference) {
  if (reference || !outer().head) {
    if (!head_) head_ = walk_.model.load_head(walk_.backend);
    return *head_;
  }
  if (!quantized_head_) {
    const CausalLM& model = walk_.model;
    quantized_head_ = load_head_norm(model.config(), model.checkpoint(), walk_.backend);
    quantized_head_->weight = dequantize(*outer().head, walk_.backend);
  }
  return *quantized_head_;
}

const std::vector<BlockWeights>& WalkOfRank::weights_of(int stream, int stage) {
  for (const Loaded& loaded : loaded_) {
    if (loaded.stream == stream && loaded.stage == stage) return loaded.blocks;
  }
  if (!stages_.weights_stay()) loaded_.clear();
  Loaded& loaded = loaded_.emplace_back(Loaded{stream, stage, {}});
  const PartRange blocks = stages_.blocks_of(stage);
  for (int block = blocks.begin; block < blocks.end; ++block) {
    loaded.blocks.push_back(streams_[stream](block));
    ++blocks_loaded_;
    walk_.monitor.tick();
  }
  return loaded.blocks;
}

Tensor WalkOfRank::input(const Step& step, const Item& item) {
  const EvaluationBatch& batch = batch_of(item);
  if (step.from < 0) {
    CausalLM::EmbeddingRows rows;
    const bool last = item.stream + 1 == static_cast<int>(streams_.size());
    if (last && outer().embedding) {
      if (!embedding_) embedding_.emplace(*outer().embedding);
      rows = [this](std::int64_t id) { return embedding_->values(id); };
    }
    return walk_.model.embed(padded_ids(batches_[item.batch].sequences, batch), batch.length,
                             walk_.backend, rows);
  }
  return waiting_.load(key(step.stage, step.item), 0, batch.rows(), walk_.backend);
}

void WalkOfRank::go_through_stage(const Step& step, const Item& item) {
  const EvaluationBatch& batch = batch_of(item);
  const std::vector<BlockWeights>& weights = weights_of(item.stream, step.stage);
  BlockState state;
  state.residual = input(step, item);
  state.sequences = std::ssize(batch.sequences);
  state.length = batch.length;
  for (const BlockWeights& block : weights) {
    walk_.decoder.forward(block, state, walk_.backend);
    walk_.monitor.tick();
  }
  const bool here = step.to == ranks_->rank();
  Activations& out = here ? waiting_ : leaving_;
  const int shard = here ? key(step.stage + 1, step.item) : 0;
  out.reserve(shard, batch.rows());
  out.store(shard, 0, std::as_const(state.residual).view(), walk_.backend);
  waiting_.release(key(step.stage, step.item));  // only now: it was read by what is stored
  if (here) return;
  messages_.send(leaving_.bytes(shard), step.to);
  leaving_.release(shard);
}

void WalkOfRank::go_through_head(const Step& step, const std::vector<Item>& items,
                                 const Visit& visit) {
  const Item& item = items[step.item];
  const int last = static_cast<int>(streams_.size()) - 1;
  if (item.stream < last) return;  // waits for the other model's
  std::vector<int> shards;
  if (item.reference >= 0) shards.push_back(key(step.stage, item.reference));
  shards.push_back(key(step.stage, step.item));
  std::vector<Tensor> residuals;
  for (const int shard : shards)
    residuals.push_back(waiting_.load(shard, 0, batch_of(item).rows(), walk_.backend));
  std::vector<AtHead> models;
  for (const Tensor& residual : residuals)
    models.push_back({head_of(&residual != &residuals.back()), residual});
  visit(item.batch, models);
  walk_.backend.sync();  // they may be on their way to the device
  for (const int shard : shards) waiting_.release(shard);
}

void WalkOfRank::stop(std::span<const Step> left, const std::vector<Item>& items) {
  std::set<int> told;
  for (const Step& step : left) {
    if (step.to < 0 || step.to == ranks_->rank() || !told.insert(step.to).second) continue;
    leaving_.reserve(0, batch_of(items[step.item]).rows());
    messages_.send_stop(leaving_.bytes(0), step.to);
    leaving_.release(0);
  }
  messages_.drain();
}

std::map<int, SentBatches> WalkOfRank::sent() const {
  std::map<int, SentBatches> sent;
  for (const auto& [to, batches] : messages_.sent()) sent[ranks_of(ring_).begin + to] = batches;
  return sent;
}

}  // namespace roundhouse
