// Which blocks of which recipes are left to do, and the walk of every rank through them.
//
// The unit of progress is (recipe, block). A method that needs activations takes a recipe's blocks in order: block b's input
// is the output of the quantized blocks before it. Stage p hands its last output to stage p + 1, shard by shard, and goes on
// with the next recipe while stage p + 1 works on this one:
//
//   time     1          2          3          4
//   stage 0  recipe A   recipe B   recipe C
//   stage 1             recipe A   recipe B   recipe C
//
// What a method decides for the whole model is a record, too: made by all ranks before the first block, and read on resume.
//
// On resume a recipe starts at the newest point from which all that is missing can be reached: a snapshot of the activations,
// or the embedding. Blocks that are already committed are only run forward.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/causal_lm.h"
#include "model/quantized/quantized_linear.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/schedule/mesh.h"
#include "pipeline/schedule/snapshots.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/activations.h"
#include "stages/quantize/methods.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// The state of one recipe in the store. The same on every rank.
struct RecipeState {
  std::vector<bool> done;    // by block
  int snapshot = 0;          // blocks before the newest usable snapshot; 0: start at the embedding
  ContentsByTensor made_of;  // what the done blocks say that they were made of
  std::set<std::string> computed_by;       // Backend::computes_as() of those who made them
  bool decides = false;                    // its method decides for the whole model, which is
  std::optional<nlohmann::json> decision;  // this, if it is there
  std::set<std::string> decided_as;        // which decisions the done blocks were made by
  std::vector<nlohmann::json> statistics;  // that it is to decide by, by block; null: missing
  int missing() const;                     // blocks
  bool complete() const { return missing() == 0 && (!decides || decision); }
  int first_missing() const;  // Precondition: missing() > 0
  int last_missing() const;
};

// Collective: ranks share the reading. What one has seen, the others expect to see. shards: of the calibration, for what makes
// blocks. Of blocks that are done only their attributes are read, but for those that are to be run forward, and of snapshots: what is
// damaged of these is removed. 0: nothing is going to be made, and nothing else is looked at. Throws InputError where its records do
// not belong together.
RecipeState inspect_recipe(
    const Recipe& recipe, int blocks, int shards, RunStore& store, Communicator& world,
    const std::function<void()>& tick = [] {});

struct Schedule {
  Backend& backend;
  const Mesh& mesh;
  const CausalLM& model;
  ModelIdentity& identity;
  const DecoderBlock& shape;
  const Samples* samples;  // nullptr: no recipe needs streams
  RunStore& store;
  ActivationBudget& budget;
  std::size_t saved_activation_bytes;  // see BlockTask
  JobMonitor& monitor;
  double interruption_hours;  // checkpoint.interruption_hours: for snapshots
  // On the team's rank 0, after a unit was committed.
  std::function<void(const Recipe&, const QuantizedBlock&, double seconds)> on_unit;
  // Collective over the team, before it begins with a recipe: these are finished on all stages, and this team is to make what is
  // made of them; the others go on meanwhile. Each recipe comes once, to one team, but for those at the end, when all ranks are
  // free. False: asked to stop.
  std::function<bool(const std::vector<std::size_t>& recipes)> on_finished;
  // Collective: the samples that gradients are of. Called where they are wanted.
  std::function<Samples(const Needs::Gradients&)> gradient_samples;
  std::function<std::unique_ptr<Method>(const Recipe&)> method_of = [](const Recipe& recipe) {
    return make_method(recipe);
  };
};

// Collective: what recipes make of the model's gradients (gradient_recipes.h), what methods decide for the whole model
// (Method::decide()), where that is missing, before any block; then every missing block of every recipe. False if it stopped because
// it was asked to.
bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  std::vector<RecipeState> states);

}  // namespace roundhouse
