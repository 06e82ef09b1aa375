// The walk of everything that is evaluated of a model: a pipeline over blocks.
//
// The ranks of a group form rings. The model's blocks are cut into stages, runs of consecutive ones; stage s is that of the ring's rank
// s modulo its ranks. Batches go round, so that a rank works on a batch while the next rank works on the batch before it:
//
//   time                 1         2         3         4         5
//   rank 0   stage 0:    batch 0   batch 1   batch 2   (stage 2:) batch 0, which has come back   batch 1
//   rank 1   stage 1:              batch 0   batch 1   batch 2   (stage 3:) batch 0
//
// A rank holds the weights of one stage at a time, reads each of its blocks once a walk, and goes on to its next stage when all batches
// are through. They wait for it in the ring's memory for activations; where that does not hold all of them, they go in portions, and
// blocks are read once a portion. Where each rank has one stage, its weights stay, and there is a portion for each thing that is evaluated.
// The first stage makes the embeddings; behind the last one batches are dealt to the ranks of the ring, which is no less work than a
// few blocks: head and scores.
//
// Two models of one shape, streams of a walk, go through the stages one after the other, and meet at the head.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "comm/tree_sum.h"
#include "model/block/decoder_block.h"
#include "model/causal_lm.h"
#include "model/quantized/outer_linears.h"
#include "stages/evaluate/batch_messages.h"
#include "stages/evaluate/scored_sequence.h"
#include "stages/flow/activations.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

// Weights of block b, loaded when they are needed: original or dequantized.
using BlockSource = std::function<BlockWeights(int block)>;
// What is quantized outside the blocks, loaded once by each rank that needs it.
using OuterSource = std::function<OuterLinears()>;

// How a group of ranks shares a walk. No bit of any result depends on it.
struct WalkShape {
  int rings = 1;  // batches are dealt to them
  int blocks_at_once =
      1;  // a rank holds the weights of so many, of each of two models if each rank has one stage

  bool operator==(const WalkShape&) const = default;
};

// The stages of one ring.
struct WalkStages {
  int blocks, ranks, stages;

  PartRange blocks_of(int stage) const { return parts_of_rank(blocks, stage, stages); }
  int rank_of(int stage) const { return stage % ranks; }
  bool weights_stay() const { return stages <= ranks; }
  int blocks_of_rank(int rank) const;
};
WalkStages stages_of_walk(int blocks, int ranks, int blocks_at_once);

// The same on every rank of the group, but for backend, budget and monitor. Nothing is owned.
struct ModelWalk {
  const CausalLM& model;
  const DecoderBlock& decoder;
  BlockSource reference;  // the original's blocks; none: nothing is compared
  BlockSource weights;
  Backend& backend;
  Communicator& group;
  ActivationBudget& budget;
  Monitor& monitor;
  WalkShape shape = {};
  OuterSource outer = {};  // beside `weights`; none: the original's
};

struct WalkBatch {
  std::span<const ScoredSequence> sequences;  // among which are the batch's
  EvaluationBatch batch;
  bool compared;  // through both models
  int work;       // which of the things that are evaluated it is of: ascending
};

// One rank's part.
class WalkOfRank {
 public:
  // Collective over the group.
  WalkOfRank(const ModelWalk& walk, std::vector<WalkBatch> batches);
  ~WalkOfRank();

  // Runs of batches that go through the model together.
  const std::vector<PartRange>& portions() const { return portions_; }
  // At the head of a batch: the residuals of its rows, of both models (the reference first) or of the last one, and their heads.
  struct AtHead {
    const CausalLM::Head& head;
    const Tensor& residual;
  };
  using Visit = std::function<void(int batch, std::span<const AtHead> models)>;
  // Each portion once, in order, on every rank. False: this rank or one before it in the ring was asked to stop; then no portion comes any more.
  bool run(PartRange portion, const Visit& visit);
  // Of a portion, which batches a rank of the group visits, in order.
  std::vector<int> visited_by(int rank, PartRange portion) const;

  int blocks_loaded() const { return blocks_loaded_; }
  std::map<int, SentBatches> sent() const;  // by receiver, a rank of the group

 private:
  struct Item {
    int stream, batch;
    int reference;  // the item of the same batch in the stream before; -1: none
  };
  struct Step {
    int stage;  // that of the head is the number of stages
    int item;
    int from, to;  // ranks of the ring; -1: the embedding, the scores
  };
  struct Loaded;

  int ring_of(int batch) const { return batch % walk_.shape.rings; }
  int owner(int batch) const;  // whose its head is: a rank of the ring
  PartRange ranks_of(int ring) const;
  std::vector<PartRange> cut_portions() const;
  std::vector<Item> items_of(PartRange portion) const;
  std::vector<Step> steps_of(const std::vector<Item>& items) const;
  std::map<int, std::deque<BatchMessages::Expected>> expected(const std::vector<Step>& steps,
                                                              const std::vector<Item>& items) const;
  int key(int stage, int item) const { return stage * most_items_ + item; }
  const EvaluationBatch& batch_of(const Item& item) const { return batches_[item.batch].batch; }
  const std::vector<BlockWeights>& weights_of(int stream, int stage);
  Tensor input(const Step& step, const Item& item);
  void go_through_stage(const Step& step, const Item& item);
  void go_through_head(const Step& step, const std::vector<Item>& items, const Visit& visit);
  const OuterLinears& outer();
  const CausalLM::Head& head_of(bool reference);
  void stop(std::span<const Step> left, const std::vector<Item>& items);

  const ModelWalk& walk_;
  std::vector<WalkBatch> batches_;
  std::vector<BlockSource> streams_;
  int ring_;
  std::unique_ptr<Communicator> ranks_;  // of the ring
  WalkStages stages_;
  std::vector<PartRange> portions_;
  int most_items_ = 1;   // of a portion
  Activations waiting_;  // for this rank, by key()
  Activations leaving_;  // the batch that is being sent
  BatchMessages messages_;
  std::vector<Loaded> loaded_;
  std::optional<OuterLinears> outer_;
  std::optional<DequantizedRows> embedding_;
  std::optional<CausalLM::Head> head_,
      quantized_head_;  // the original's; the last stream's, where it has one of its own
  int blocks_loaded_ = 0;
};

}  // namespace roundhouse
