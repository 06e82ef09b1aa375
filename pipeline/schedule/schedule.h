// Which blocks of which recipes are left to do, and the walk of every rank through them.
//
// The unit of progress is (recipe, block). A method that needs activations takes a recipe's blocks in order: block b's input
// is the output of the quantized blocks before it. Stage p hands its last output to stage p + 1, shard by shard, and goes on
// with the next recipe (or wave of recipes: waves.h) while stage p + 1 works on this one:
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
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "model/causal_lm.h"
#include "model/quantized/quantized_linear.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/schedule/lane.h"
#include "pipeline/schedule/planner.h"
#include "pipeline/schedule/recipe_failure.h"
#include "pipeline/schedule/recipe_state.h"
#include "pipeline/schedule/waves.h"
#include "pipeline/schedule/write_behind.h"
#include "pipeline/watch/job_monitor.h"
#include "stages/calibrate/samples.h"
#include "stages/flow/activations.h"
#include "stages/quantize/methods.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

struct Schedule {
  Backend& backend;
  const Mesh& mesh;            // of all ranks
  const Lane* lane = nullptr;  // of this rank, where recipes are dealt to lanes
  const CausalLM& model;
  ModelIdentity& identity;
  const DecoderBlock& decoder;
  std::map<std::string, Samples>
      samples;  // by calibration set: of those whose streams recipes need
  RunStore& store;
  ActivationBudget& budget;
  std::size_t saved_activation_bytes;  // see BlockTask
  JobMonitor& monitor;
  double interruption_hours;     // checkpoint.interruption_hours: for snapshots
  std::vector<Wave> waves = {};  // recipes that go through the model together; others go alone
  // On the rank that committed a unit, once its record is durable.
  std::function<void(const Recipe&, const QuantizedBlock&, double seconds)> on_unit;
  // Collective over the team, before it begins with a recipe: these are finished on all stages, and this team is to make what is
  // made of them; the others go on meanwhile. Each recipe comes once, to one team, but for those at the end, when all ranks are
  // free. False: asked to stop.
  std::function<bool(const std::vector<std::size_t>& recipes)> on_finished;
  // Of making a unit: what running it forward takes. A resume does only that much again.
  std::function<double(const Step&)> forward_share = [](const Step&) { return 1.0; };
  // Collective: the samples that gradients are of. Called where they are wanted.
  std::function<Samples(const Needs::Gradients&)> gradient_samples;
  std::function<std::unique_ptr<Method>(const Recipe&)> method_of = [](const Recipe& recipe) {
    return make_method(recipe);
  };
  RecipeFailures failures = {};  // found on the way
  WriteBehind behind{store};     // this rank's units

  const Samples* samples_of(const Recipe& recipe) const;  // nullptr: it needs no streams
};

// Collective: what recipes make of the model's gradients (gradient_recipes.h), what methods decide for the whole model
// (Method::decide()), where that is missing, before any block; then every missing block of every recipe. False if it stopped because
// it was asked to. A recipe that cannot be made (UnquantizableError) is left where that was found, and its state then says so, on all
// ranks alike; one whose state says so before is left out.
bool quantize_all(Schedule& schedule, const std::vector<Recipe>& recipes,
                  std::vector<RecipeState>& states);

}  // namespace roundhouse
