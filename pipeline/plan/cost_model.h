// What the steps of a schedule cost on a device: seconds, bytes and memory. All of it reckoned from shapes (BlockCost) and rates.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "model/block/decoder_block.h"
#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/device_rates.h"
#include "pipeline/plan/evaluation_cost.h"
#include "pipeline/schedule/planner.h"
#include "stages/flow/load_shared.h"
#include "stages/quantize/methods.h"

namespace roundhouse {

// What is planned. Not owned.
struct PlannedJob {
  const RunConfig& config;
  const ModelConfig& model;
  const DecoderBlock& decoder;
  const DeviceRates& rates;
  int ranks;
  MeshShape mesh;
};

// Of one team.
struct StepTime {
  std::map<std::string, double> phases;  // seconds
  double work = 0;                       // rank-seconds in which ranks compute, load or commit
  double seconds() const;
};

struct DiskUse {
  double records = 0, exports = 0, snapshots = 0, calibration = 0;  // snapshots: most at one time
  double peak() const { return records + exports + snapshots + calibration; }
};

// Of the rank that takes most.
struct MemoryUse {
  double device = 0;       // that of the device; 0 where it is the host's
  double host = 0;         // all of it
  double activations = 0;  // of these: streams and what is kept inside a block
};

class CostModel {
 public:
  explicit CostModel(const PlannedJob& job);

  const PlannedJob& job() const { return job_; }
  int team() const { return job_.mesh.data; }
  int shards() const { return most_shards(job_.config); }
  int nodes() const;

  // Of a recipe that goes alone.
  StepTime make(std::size_t recipe) const { return make(alone(Step::Kind::kMake, recipe)); }
  StepTime make_outside(std::size_t recipe) const;  // what it includes outside the blocks
  StepTime replay(std::size_t recipe) const { return replay(alone(Step::Kind::kReplay, recipe)); }
  // Steps of their kinds; of what a wave shares it counts what is done at this one.
  StepTime make(const Step& step) const;
  StepTime replay(const Step& step) const;
  StepTime embed(const Step& step) const;
  StepTime load_snapshot(const Step& step) const;
  StepTime write_snapshot(const Step& step) const;
  StepTime gradient_forward(std::size_t recipe) const;
  StepTime gradient_backward(std::size_t recipe) const;
  StepTime statistics(std::size_t recipe) const;
  StepTime decide(std::size_t recipe) const;                    // by all ranks
  StepTime make_products(std::size_t recipe, int ranks) const;  // exports, evaluations
  double export_seconds(std::size_t recipe, const std::string& format, int ranks) const;
  StepTime measure_original() const;  // by all ranks
  // Of a recipe, or of the original; all zeros where nothing is evaluated.
  enum class Evaluated { kRecipe, kOriginal };
  EvaluationCost evaluation(Evaluated what, int ranks) const;
  double transfer_seconds(const Step& step) const;  // of a rank's streams to the next stage
  double forward_share(const Step& step) const;  // of making a unit: what running it forward takes

  double stream_bytes(const Step& step) const;  // over all shards, of the streams that go along
  double rank_stream_bytes(const Step& step) const;
  double gradient_stream_bytes(std::size_t recipe) const;  // of one stream
  TeamBytes unit_traffic(const Step& step) const;          // of making a block
  TeamBytes gradient_traffic(std::size_t recipe) const;    // of a block's sums
  double load_sent(const Step& step) const;  // by a team that loads the block's weights in parts

  double block_bytes() const { return block_bytes_; }      // of the checkpoint
  double block_bytes_read() const;                         // of these, by all nodes of a team
  double outside_bytes() const { return outside_bytes_; }  // embedding, head, final norm
  double record_bytes(std::size_t recipe) const;           // of a block
  double outer_record_bytes(
      std::size_t recipe) const;  // of what it includes outside the blocks; 0: nothing
  double records_bytes(std::size_t recipe) const {  // of all its units
    return static_cast<double>(job_.model.blocks) * record_bytes(recipe) +
           outer_record_bytes(recipe);
  }
  double export_bytes(std::size_t recipe, const std::string& format) const;
  DiskUse disk(const std::vector<Wave>& waves) const;  // recipes of none go alone
  MemoryUse memory(const Wave& wave) const;
  MemoryUse evaluation_memory() const;  // by all ranks; zeros where nothing is evaluated
  EvaluationSize evaluated() const;     // of a recipe

 private:
  const Recipe& recipe(std::size_t r) const { return job_.config.recipes[r]; }
  const SampleOptions& samples_of(std::size_t r) const {
    return calibration_set(job_.config, recipe(r).calibration);
  }
  Step alone(Step::Kind kind, std::size_t r) const {
    return {kind, r, 0, 0, true, recipe(r).needs.full_precision_stream};
  }
  BlockCost cost_of(std::size_t recipe, MadeBefore made) const;
  const BlockCost& cost_of(const Step& step) const;
  double one_stream_bytes(std::size_t recipe) const;
  // Bytes of a wave's streams, over all shards.
  struct Streams {
    double own = 0, shared = 0;  // quantized, full-precision
    double output = 0;           // of the block at hand, where several recipes carry the latter
    double all() const { return own + shared; }
  };
  Streams streams_of(const Wave& wave) const;
  struct InsideBlock {
    double device = 0, kept = 0, gradients = 0;
  };
  InsideBlock inside_block(std::size_t recipe, bool beside_others) const;
  int most_blocks_of_stage() const;
  StepTime timed(const std::string& method, const BlockCost& cost) const;
  void add_load(StepTime& time, double bytes, double shared) const;
  void add_block_load(StepTime& time) const;
  bool loads_in_parts() const;
  LoadTraffic load_traffic() const;  // of a block
  double file_share_of_node() const;
  double team_link() const;
  double forward_seconds(double tokens, int length) const;  // of a block, one device
  BlockCost gradient_block(std::size_t recipe) const;
  // By linear of a block.
  std::vector<LinearScheme> schemes_of(std::size_t recipe, int block) const;
  double record_bytes(std::size_t recipe, const DecoderBlock& decoder,
                      const std::vector<LinearScheme>& of_block) const;
  // The linears outside the blocks that a recipe includes: nullptr, or a block of their own; and what becomes of them.
  const DecoderBlock* outer(std::size_t recipe) const { return outer_[recipe].get(); }
  std::vector<LinearScheme> outer_schemes(std::size_t recipe) const;
  double outer_weights(std::size_t recipe) const;
  // The mean over blocks of what one takes.
  double mean_over_blocks(std::size_t recipe,
                          const std::function<double(const std::vector<LinearScheme>&)>& of) const;

  PlannedJob job_;
  std::vector<std::unique_ptr<Method>> methods_;  // by recipe
  std::vector<BlockCost> costs_;                  // of recipes that go alone
  std::vector<std::unique_ptr<DecoderBlock>> outer_;
  std::vector<BlockCost> outer_costs_;
  // Where others have made something before.
  mutable std::map<std::pair<std::size_t, int>, BlockCost> beside_;
  double weights_ = 0;       // of a block's linears
  double largest_part_ = 0;  // of these, that a rank of a team reads
  double block_bytes_ = 0, outside_bytes_ = 0;
};

}  // namespace roundhouse
