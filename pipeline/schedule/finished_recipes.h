// Which recipes are finished on all stages of the pipeline, so that they can be exported and measured while others are still
// being quantized. Each recipe is given to one stage, in turns: its team makes what is to be made of it between two of its own
// recipes, and the other stages go on meanwhile. Recipes that all ranks have finished together come first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "pipeline/schedule/mesh.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// Each stage tells a recipe's keeper once that its blocks are committed, and how long their records are: a rank on another
// machine may not see them at once.
class FinishedRecipes {
 public:
  // Collective over the mesh's world. Of the recipes, `finished`: those that all ranks have just made, and know the records of;
  // `unfinished`: those that are to be made. The same on every rank.
  FinishedRecipes(const Mesh& mesh, int blocks, const std::vector<Recipe>& recipes,
                  const std::vector<std::size_t>& finished,
                  const std::vector<std::size_t>& unfinished, RunStore& store,
                  std::function<void()> tick);

  // Collective over the team: this stage has done its part of a recipe; or has ended before (`whole` is false).
  void tell(std::size_t recipe, bool whole);
  // Collective over the team: those that this stage keeps, are finished everywhere, and were not taken before. Does not wait.
  std::vector<std::size_t> take();
  // Collective over `all`, of which the mesh's world is a part: waits for what is under way, and tells all ranks of all records. Every
  // recipe was told of.
  void finish(Communicator& all);

 private:
  struct Note {                       // from one stage to a keeper
    std::vector<std::int64_t> bytes;  // of the stage's records, by block; -1: not committed
    std::unique_ptr<Ticket> ticket;   // nullptr: arrived, or of this stage
  };
  struct Kept {
    std::size_t recipe;
    std::vector<Note> notes;  // by stage
    bool told = false;        // by this stage
  };
  // Of a recipe: what stands outside the blocks is the last stage's.
  PartRange units_of(std::size_t recipe, int stage) const;

  const Mesh& mesh_;
  int blocks_;
  const std::vector<Recipe>& recipes_;
  RunStore& store_;
  std::function<void()> tick_;
  std::vector<int> keeper_;             // by recipe: a stage; -1: it is not to be made
  std::unique_ptr<Communicator> comm_;  // so that notes do not mix with activations
  std::vector<std::size_t> finished_;   // at the start, and given to this stage: not taken yet
  std::vector<Kept> kept_;              // by this stage, not taken yet
  std::vector<std::unique_ptr<Note>> sent_;
  nlohmann::json told_ = nlohmann::json::object();  // length by key, of this stage's records
};

}  // namespace roundhouse
