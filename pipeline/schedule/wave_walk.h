// One stage's walk through the recipes of a wave.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model/checkpoint/weight_prefetch.h"
#include "pipeline/schedule/handover.h"
#include "pipeline/schedule/schedule.h"
#include "pipeline/schedule/snapshots.h"
#include "pipeline/schedule/waves.h"

namespace roundhouse {

class WaveWalk {
 public:
  // `mesh`: the one that the recipes go through. `states`: of all recipes; of those of the wave something is missing.
  WaveWalk(Schedule& schedule, const Mesh& mesh, Handover& handover, const Wave& wave,
           const std::vector<Recipe>& all, const std::vector<RecipeState>& states);

  // False: stopped.
  bool run();

  // In place of run() once this stage has stopped: takes what the stage before still sends (it may not have heard yet)
  // and throws it away, and tells the next one not to wait.
  void skip();

  // After run(): by recipe of the wave; false where it cannot be made, which was found here or on a stage before this one. Whoever found
  // it has noted it.
  std::vector<bool> made() const;

 private:
  struct Member {
    std::size_t number;  // among all recipes
    const Recipe& recipe;
    const RecipeState& state;
    std::unique_ptr<Method> method;
    Way way;
    Snapshots snapshots;
    SnapshotTiming progress_timing;  // of what is learned inside a block
    std::unique_ptr<Activations> quantized = nullptr;
    std::unique_ptr<DecoderBlock> outer = nullptr;  // of what it includes outside the blocks
    bool failed = false;

    bool done(int block) const { return state.done[block]; }
    bool at_work(int block) const { return !failed && way.through(block, state); }
    bool carries_original(int block) const { return way.original && at_work(block); }
  };
  using Members = std::vector<Member*>;

  PartRange own() const { return own_; }
  PartRange shards() const;
  Members members(const std::function<bool(const Member&)>& which);
  Members arriving() {
    return members([](const Member& member) { return member.way.arrives; });
  }
  Members going_on() {
    return members([](const Member& member) { return member.way.goes_on; });
  }
  Members at_work(int block) {
    return members([=](const Member& member) { return member.at_work(block); });
  }
  Members carriers(int block) {
    return members([=](const Member& member) { return member.carries_original(block); });
  }

  // Of what arrives. False: the stage before has stopped.
  bool receive();
  void report_arrival(const Members& arrived, std::size_t streams, double seconds);
  std::unique_ptr<Activations> make_activations();
  // Brings the streams of recipes that begin with this block.
  void enter(int block);
  void embed(const std::vector<Activations*>& streams);
  // False: stopped.
  bool pass(int block);
  // What is behind the block becomes what is before the next.
  void move_on(int block);
  void hand_over();
  // The team ends at the same unit: its rank 0 decides.
  bool stop();

  int blocks() const { return static_cast<int>(s_.model.config().blocks); }
  BlockSite site(int block, const DecoderBlock& decoder) const;
  // By all ranks of the team together. Seconds that it took; nothing: they are there.
  std::optional<double> load_weights(int block);
  // `others`: of the method make the block, too. `last`: nobody needs the weights after it. A recipe that cannot be made leaves the wave, which is noted.
  void make_unit(Member& member, int block, bool others, bool last);
  void drop(Member& member, int block, const std::string& why);
  // The quantized stream through the weights of the block that is committed.
  void replay(Member& member, int block);
  void pass_original(int block);
  // Of making a unit: what only running it forward would take, by floating-point operations.
  double forward_share(const Member& member, int block) const;
  // The team's rank 0 decides for all of it.
  void write_snapshots(int blocks_done);

  Schedule& s_;
  const Mesh& mesh_;
  Handover& handover_;
  const PartRange own_;     // units
  const Samples* samples_;  // nullptr: the wave is of recipes without streams
  std::vector<Member> members_;
  const nlohmann::json nothing_decided_;
  SnapshotTiming timing_;  // of the activations between blocks
  WeightPrefetch prefetch_;
  std::optional<BlockWeights>
      weights_;        // of the block at hand; what is outside the blocks is loaded for each recipe
  BlockShare shared_;  // of it, by neighbours in the wave of one method:
  std::string sharing_;
  std::unique_ptr<Activations> original_;  // the full-precision stream before the block at hand
  std::unique_ptr<Activations> original_output_;  // behind it, where several recipes carry it
  const Activations* made_in_ = nullptr;  // which of the two has the output of the block at hand
};

}  // namespace roundhouse
