// What it costs to evaluate a model in one walk (stages/evaluate/model_walk.h), and how ranks share that best. Plans are made of it, and
// jobs choose by it.
#pragma once

#include "model/block/decoder_block.h"
#include "model/model_config.h"
#include "pipeline/plan/device_rates.h"
#include "stages/evaluate/model_walk.h"

namespace roundhouse {

struct EvaluationSize {
  double tokens = 0;
  double compared = 0;  // of these: tokens that go through the original, too
  int works = 1;        // texts and tasks
  double largest = 0;   // tokens and compared of the largest of these; 0: each has as many
  int length = 2048;    // tokens of a sequence
};

// Where it is done. Not owned.
struct EvaluationSite {
  const ModelConfig& model;
  const DecoderBlock& decoder;
  const DeviceRates& rates;
  int ranks;
  double activation_bytes;  // that a rank may hold
  double device_bytes;      // that a rank's device has free; of no meaning where that is the host
};

struct EvaluationCost {
  WalkShape shape;
  double seconds = 0;
  double work = 0;   // rank-seconds in which ranks compute or load
  double reads = 0;  // how often each block's weights are loaded, of each model that is walked
  double file_reads =
      0;                // how often they come from the file system: ranks of a node share its cache
  double messages = 0;  // batches that are sent from rank to rank
  double sent = 0;      // bytes of these
  double computing = 0;  // bytes of a rank where it computes: weights of a stage, the head, a batch
  double waiting = 0;    // bytes of activations that a rank may come to hold
};

// Of a walk of this shape. Precondition: there are tokens, and a ring has no more ranks than the model has blocks.
EvaluationCost evaluation_cost(const EvaluationSite& site, const EvaluationSize& size, int rings);

// With as many rings as is fastest: ranks of one ring read each block once, those of several need fewer messages and never wait for a
// pipeline that fills, or for a rank that has one block more than others. The fewest, unless more are clearly faster.
EvaluationCost best_evaluation(const EvaluationSite& site, const EvaluationSize& size);

}  // namespace roundhouse
