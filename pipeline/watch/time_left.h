// How long the rest of a job takes. Units of different methods, exports and evaluations differ by a hundred times, so each kind of
// work counts with what its own finished pieces took; one of which none is finished yet, with its floating-point
// operations, at the rate that the finished kinds have reached together.
#pragma once

#include <map>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "model/block/decoder_block.h"
#include "model/model_config.h"
#include "pipeline/config/config.h"
#include "stages/quantize/method.h"

namespace roundhouse {

class TimeLeft {
 public:
  // `plan`: by kind of work {"cost": of a piece, in floating-point operations, "left": pieces}; kinds are what kind_of() says.
  explicit TimeLeft(const nlohmann::json& plan = nlohmann::json::object());

  // A finished piece, as the journal has it: {"event": "block", "gradients_forward", "gradients_block", "statistics", "export", "perplexity" or
  // "task", "seconds": .., "ranks": ..}. Others are passed over.
  void finished(const nlohmann::json& event);
  // After `elapsed` seconds of the whole job on this plan; nothing while no piece is finished.
  std::optional<double> seconds(double elapsed) const;

 private:
  struct Work {
    double cost = 0;
    int left = 0, done = 0;
    double rank_seconds = 0;  // of those that are done: seconds times ranks
  };
  std::map<std::string, Work> works_;
};

// "block gptq-w4g128", "gradients 100x512", "gradients 100x512 forward", "statistics llm-mq-w2.6g128", "export dense", "perplexity test", "task piqa"; empty: an event that is no piece of work.
std::string kind_of(const nlohmann::json& event);

// What a piece costs: the operations of the methods (Method::cost()), of forward passes, and so many for each
// weight that is read, rounded or written.
double block_cost(const Method& method, const DecoderBlock& decoder, const SampleOptions& samples,
                  bool on_device);
double forward_cost(const DecoderBlock& decoder, const SampleOptions& samples);  // of one stream
// Of a walk through gradients, for each block: on the way there, and back, where a block is run forward again, then backward. What is
// made of the gradients is not in it.
double gradient_forward_cost(const DecoderBlock& decoder, int samples, int length);
double gradient_cost(const DecoderBlock& decoder, int samples, int length);
double statistics_cost(const DecoderBlock& decoder);  // of a block
double export_cost(const ModelConfig& model, const DecoderBlock& decoder);
double perplexity_cost(const ModelConfig& model, const DecoderBlock& decoder, double tokens);

}  // namespace roundhouse
