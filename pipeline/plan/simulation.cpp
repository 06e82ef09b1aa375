#include "pipeline/plan/simulation.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "pipeline/schedule/snapshots.h"

namespace roundhouse {
namespace {

using Kind = Step::Kind;
constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

bool of_a_walk(Kind kind) {
  return kind == Kind::kForward || kind == Kind::kBackward || kind == Kind::kStatistics ||
         kind == Kind::kDecide;
}

class Simulator {
 public:
  Simulator(const std::vector<std::vector<Step>>& steps, const CostModel& costs)
      : steps_(steps), costs_(costs), stages_(steps.size()) {
    const std::size_t recipes = costs.job().config.recipes.size();
    result_.stages.resize(steps.size());
    result_.recipe_seconds.resize(recipes);
    result_.finished_at.resize(recipes);
    left_.resize(recipes);
    for (const auto& of_stage : steps) {
      for (const Step& step : of_stage) ++left_[step.recipe];
    }
    int next = 0;
    keeper_.assign(recipes, kNone);
    for (std::size_t r = 0; r < recipes; ++r) {
      if (left_[r] == 0 || costs.job().config.recipes[r].needs.makes_blocks_of_gradients())
        continue;
      keeper_[r] = static_cast<std::size_t>(next++) % steps.size();
    }
    products_.assign(recipes, false);
  }

  Simulation run() {
    for (;;) {
      std::size_t best = kNone;
      for (std::size_t s = 0; s < stages_.size(); ++s) {
        if (!ready(s)) continue;
        if (best == kNone || stages_[s].clock < stages_[best].clock) best = s;
      }
      if (best == kNone) break;
      advance(best);
    }
    for (std::size_t s = 0; s < stages_.size(); ++s)
      require(stages_[s].next == steps_[s].size(),
              "a schedule in which stages wait for each other");
    finish();
    return std::move(result_);
  }

 private:
  struct Stage {
    std::size_t next = 0;
    double clock = 0;
    std::optional<std::pair<std::size_t, int>> sent;  // recipe and block of the set on its way out:
    int sent_wave = -1;                               // the last of a wave's
    int walking = -1;                                 // the wave that is under way
    std::optional<SnapshotTiming> timing;
    bool snapshot_due = false;
  };
  using Place = std::pair<std::size_t, int>;

  const Step& next_of(std::size_t s) const { return steps_[s][stages_[s].next]; }

  bool ready(std::size_t s) const {
    if (stages_[s].next == steps_[s].size()) return false;
    const Step& step = next_of(s);
    const Place place{step.recipe, step.block};
    switch (step.kind) {
      case Kind::kReceive:
        return sent_.contains(place);
      case Kind::kHandOver:
        return stages_[s].sent_wave == step.wave || !stages_[s].sent ||
               arrived_.contains(*stages_[s].sent);
      case Kind::kForward:
        return step.block == 0 || forward_.contains({step.recipe, step.block - 1});
      case Kind::kBackward:
        return step.block + 1 == blocks() || backward_.contains({step.recipe, step.block + 1});
      case Kind::kDecide:
        for (std::size_t other = 0; other < stages_.size(); ++other) {
          if (stages_[other].next == steps_[other].size() || next_of(other) != step) return false;
        }
        return true;
      default:
        return true;
    }
  }

  void advance(std::size_t s) {
    const Step step = next_of(s);
    Stage& stage = stages_[s];
    if (step.kind == Kind::kDecide) {
      decide(step);
      return;
    }
    ++stage.next;
    const bool gradients = of_a_walk(step.kind) || config(step).needs.makes_blocks_of_gradients();
    if (!gradients && stage.walking != step.wave) {
      stage.walking = step.wave;
      stage.timing.emplace(costs_.job().config.interruption_hours);
      make_products(s);
    }
    const Place place{step.recipe, step.block};
    switch (step.kind) {
      case Kind::kEmbed:
        spend(s, step.recipe, costs_.embed(step));
        break;
      case Kind::kLoad:
        spend(s, step.recipe, costs_.load_snapshot(step));
        break;
      case Kind::kReceive:
        wait(s, sent_.at(place));
        spend(s, step.recipe, one("receive", costs_.transfer_seconds(step)));
        arrived_[place] = stage.clock;
        break;
      case Kind::kHandOver:
        // A wave's sets go together: the first of them waits for those of the wave before.
        if (stage.sent && stage.sent_wave != step.wave) wait(s, arrived_.at(*stage.sent));
        stage.sent = place;
        stage.sent_wave = step.wave;
        sent_[place] = stage.clock;
        break;
      case Kind::kReplay: {
        const StepTime time = costs_.replay(step);
        spend(s, step.recipe, time);
        stage.timing->block_done(time.seconds(), time.seconds());
        break;
      }
      case Kind::kMake: {
        const StepTime& time = cached(makes_, like(step), [&] { return costs_.make(step); });
        spend(s, step.recipe, time);
        if (stage.timing && !gradients)
          stage.timing->block_done(time.seconds(), time.seconds() * forward_share(step));
        break;
      }
      case Kind::kSnapshotIfDue: {
        snapshot(s, step);
        break;
      }
      case Kind::kForward:
        walk(s, step, forward_, step.block - 1,
             cached(forwards_, step.recipe, [&] { return costs_.gradient_forward(step.recipe); }));
        break;
      case Kind::kBackward:
        walk(s, step, backward_, step.block + 1, cached(backwards_, step.recipe, [&] {
               return costs_.gradient_backward(step.recipe);
             }));
        break;
      case Kind::kStatistics:
        spend(s, step.recipe, costs_.statistics(step.recipe));
        break;
      case Kind::kDecide:
        break;
    }
    done(s, step);
  }

  // Those of a wave are written together, if they are.
  void snapshot(std::size_t s, const Step& step) {
    Stage& stage = stages_[s];
    const auto& steps = steps_[s];
    const auto of_the_wave = [&](std::size_t at) {
      return at < steps.size() && steps[at].kind == Kind::kSnapshotIfDue &&
             steps[at].wave == step.wave;
    };
    const std::size_t at = stage.next - 1;
    if (at == 0 || !of_the_wave(at - 1)) {
      double bytes = 0, seconds = 0;
      for (std::size_t i = at; of_the_wave(i); ++i) {
        bytes += costs_.rank_stream_bytes(steps[i]);
        seconds += costs_.write_snapshot(steps[i]).seconds();
      }
      stage.snapshot_due = stage.timing->due(bytes);
      if (stage.snapshot_due) stage.timing->written(bytes, seconds);
    }
    if (!stage.snapshot_due) return;
    spend(s, step.recipe, costs_.write_snapshot(step));
    result_.snapshot_bytes += costs_.stream_bytes(step);
  }

  // Of steps that cost the same, one: which of the blocks, and which wave, does not matter.
  Step like(Step step) const {
    if (step.block < blocks()) step.block = 0;
    step.wave = 0;
    return step;
  }
  double forward_share(const Step& step) {
    const auto [found, is_new] = shares_.try_emplace(like(step));
    if (is_new) found->second = costs_.forward_share(step);
    return found->second;
  }

  // Shard by shard as they come: what remains to be waited for is the first one of the block before.
  void walk(std::size_t s, const Step& step, std::map<Place, double>& ends, int before,
            const StepTime& time) {
    if (const auto found = ends.find({step.recipe, before}); found != ends.end()) {
      const int each = std::max(1, costs_.shards() / costs_.team());
      wait(s, found->second - time.seconds() * (each - 1) / each);
    }
    spend(s, step.recipe, time);
    ends[{step.recipe, step.block}] = stages_[s].clock;
  }

  void decide(const Step& step) {
    const StepTime time = costs_.decide(step.recipe);
    double begin = 0;
    for (const Stage& stage : stages_) begin = std::max(begin, stage.clock);
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      wait(s, begin);
      StepTime share = time;
      share.work /= static_cast<double>(stages_.size());
      spend(s, step.recipe, share);
      ++stages_[s].next;
      done(s, step);
    }
  }

  void done(std::size_t s, const Step& step) {
    result_.finished_at[step.recipe] = std::max(result_.finished_at[step.recipe], stages_[s].clock);
    --left_[step.recipe];
  }

  // Of recipes that have become finished on all stages; by this one, between two of its own.
  void make_products(std::size_t s) {
    for (std::size_t r = 0; r < keeper_.size(); ++r) {
      if (keeper_[r] != s || left_[r] > 0 || products_[r] ||
          result_.finished_at[r] > stages_[s].clock)
        continue;
      products_[r] = true;
      spend(s, r, costs_.make_products(r, costs_.team()));
      count(CostModel::Evaluated::kRecipe, r, costs_.team());
    }
  }

  // What is left, by all ranks together.
  void finish() {
    double now = 0;
    for (const Stage& stage : stages_) now = std::max(now, stage.clock);
    for (std::size_t s = 0; s < stages_.size(); ++s) wait(s, now);
    const auto together = [&](std::size_t r, StepTime time) {
      time.work /= static_cast<double>(stages_.size());
      for (std::size_t s = 0; s < stages_.size(); ++s) spend(s, r, time);
    };
    const RunConfig& config = costs_.job().config;
    if (config.evaluate_original) {
      together(0, costs_.measure_original());
      count(CostModel::Evaluated::kOriginal, 0, costs_.job().ranks);
    }
    for (std::size_t r = 0; r < keeper_.size(); ++r) {
      if (products_[r]) continue;
      together(r, costs_.make_products(r, costs_.job().ranks));
      count(CostModel::Evaluated::kRecipe, r, costs_.job().ranks);
    }
    double work = 0;
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      result_.seconds = std::max(result_.seconds, stages_[s].clock);
      for (const Interval& interval : result_.stages[s]) work += interval.work * costs_.team();
    }
    if (result_.seconds > 0) result_.utilisation = work / (result_.seconds * costs_.job().ranks);
  }

  // What an evaluation reads and sends. Beside a recipe whose original it is compared with, that is read, too.
  void count(CostModel::Evaluated what, std::size_t recipe, int ranks) {
    const EvaluationCost cost = costs_.evaluation(what, ranks);
    result_.evaluation_messages += cost.messages;
    result_.evaluation_sent += cost.sent;
    const bool of_recipe = what == CostModel::Evaluated::kRecipe;
    const bool original = !of_recipe || costs_.job().config.evaluations.kl;
    result_.evaluation_read += cost.file_reads * ((of_recipe ? costs_.records_bytes(recipe) : 0) +
                                                  (original ? blocks() * costs_.block_bytes() : 0) +
                                                  costs_.outside_bytes());
  }

  void wait(std::size_t s, double until) {
    Stage& stage = stages_[s];
    if (until <= stage.clock) return;
    result_.phases["waiting"] += until - stage.clock;
    stage.clock = until;
  }

  void spend(std::size_t s, std::size_t recipe, const StepTime& time) {
    const double seconds = time.seconds();
    if (seconds <= 0) return;
    Stage& stage = stages_[s];
    for (const auto& [phase, each] : time.phases) result_.phases[phase] += each;
    result_.recipe_seconds[recipe] += seconds;
    const double work = std::min(seconds, time.work / costs_.team());
    result_.stages[s].push_back({stage.clock, stage.clock + seconds, work, recipe});
    stage.clock += seconds;
  }

  static StepTime one(const std::string& phase, double seconds) {
    StepTime time;
    time.phases[phase] = seconds;
    return time;
  }
  template <class Key, class Make>
  static const StepTime& cached(std::map<Key, StepTime>& times, const Key& key, const Make& make) {
    auto found = times.find(key);
    if (found == times.end()) found = times.emplace(key, make()).first;
    return found->second;
  }
  int blocks() const { return static_cast<int>(costs_.job().model.blocks); }
  const Recipe& config(const Step& step) const { return costs_.job().config.recipes[step.recipe]; }

  const std::vector<std::vector<Step>>& steps_;
  const CostModel& costs_;
  std::vector<Stage> stages_;
  Simulation result_;
  std::vector<int> left_;            // steps, by recipe
  std::vector<std::size_t> keeper_;  // by recipe: a stage
  std::vector<bool> products_;       // by recipe: made
  std::map<Place, double> sent_, arrived_, forward_, backward_;
  std::map<std::size_t, StepTime> forwards_, backwards_;
  std::map<Step, StepTime> makes_;
  std::map<Step, double> shares_;
};

}  // namespace

Simulation simulate(const std::vector<std::vector<Step>>& stages, const CostModel& costs) {
  return Simulator(stages, costs).run();
}

}  // namespace roundhouse
