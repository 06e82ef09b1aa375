// The evaluation of a run, or of a model: perplexities of texts, and tasks. Each figure is measured once for each model and kept with
// what it depends on.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "pipeline/job.h"
#include "stages/evaluate/perplexity.h"

namespace roundhouse {

// Tokens of the longest sequence that any of these may have; 0: there are none.
std::int64_t longest_sequence(const Evaluations& evaluations, const ModelConfig& model);

// One thing to measure, as every rank has it.
struct Evaluation {
  std::string name;
  std::vector<ScoredSequence> sequences;
  Greedy greedy = Greedy::kNo;
  std::int64_t window = 0;  // of a perplexity; 0: a task
  // Of a task.
  TaskScoring scoring;
  std::vector<TaskDocument> documents;  // without their texts
  std::vector<std::vector<std::size_t>> results;

  double tokens() const;
  bool is_task() const { return window == 0; }
};

struct EvaluationFigures {
  Perplexity perplexity;
  DivergenceFigures divergence;  // rows: 0 unless the original was beside
  TaskResult task;
  std::string summary;  // "2.3368 (486 windows)", "acc 0.994 (500 documents)"
};

// Reads and tokenizes on rank 0, for all ranks. Collective.
std::vector<Evaluation> read_evaluations(const Evaluations& evaluations, const ModelConfig& model,
                                         const Tokenizer& tokenizer, ThreadPool& threads,
                                         Communicator& world, JobMonitor& monitor);
// How a group shares a walk of these, by what is reckoned of its ranks and what memory they have. Collective over `group`. `compared`:
// those for which the original goes beside.
WalkShape choose_walk(const std::vector<const Evaluation*>& evaluations,
                      const std::vector<const Evaluation*>& compared, const CausalLM& model,
                      const DecoderBlock& decoder, const Backend& backend, int ranks_a_node,
                      const ActivationBudget& budget, Communicator& group);

// All of these in one walk; with its reference, the original's weights, also how far the model is from it, where that is `compared`.
// Collective over the walk's group. `take`, on every rank: figures of those from `first` on, which are measured now. Nothing: asked to
// stop before all were.
std::optional<WalkFacts> measure(
    const std::vector<const Evaluation*>& evaluations,
    const std::vector<const Evaluation*>& compared, const ModelWalk& walk,
    const std::function<void(std::size_t first, std::vector<EvaluationFigures> figures)>& take);
BlockSource original_weights(const CausalLM& model, const DecoderBlock& decoder, Backend& backend);

// What a run measures: as sequences of tokens once they are needed.
class RunEvaluations {
 public:
  explicit RunEvaluations(Evaluations what) : what_(std::move(what)) {}
  void read(Job& job);  // collective over the world; once
  std::size_t size() const { return what_.perplexity.size() + what_.tasks.size(); }
  const std::string& name(std::size_t index) const;
  const Evaluation& at(std::size_t index) const { return read_.at(index); }  // once they are read
  // What a figure of a recipe, or of kOriginal, depends on besides the weights.
  nlohmann::json settings(Job& job, std::size_t index, const std::string& recipe);
  // Is the original walked beside the recipe?
  bool compares(std::size_t index, const std::string& recipe) const;

 private:
  std::vector<nlohmann::json> all_settings(Job& job) const;

  Evaluations what_;
  std::vector<Evaluation> read_;
  std::vector<nlohmann::json> settings_;
};

// Of recipe names, or kOriginal. Collective over `group`: the world, or the team of a pipeline stage while other pipeline stages quantize,
// which needs evaluations that are read. Skips what is already there and right. False if it stopped because it was asked to.
bool evaluate_recipes(Job& job, Communicator& group, const std::vector<std::string>& recipes,
                      RunEvaluations& evaluations);

}  // namespace roundhouse
