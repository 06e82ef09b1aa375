#include "pipeline/schedule/gradient_recipes.h"

#include <algorithm>
#include <chrono>
#include <set>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/numerical_error.h"
#include "comm/together.h"
#include "model/block/model_units.h"
#include "pipeline/schedule/gradient_schedule.h"
#include "pipeline/schedule/unit.h"
#include "stages/flow/numerical_failures.h"

namespace roundhouse {
namespace {

using Use = Needs::Gradients::Use;

// A recipe that takes part in a walk.
struct User {
  std::size_t number;  // among all recipes
  const Recipe& recipe;
  RecipeState& state;
  std::unique_ptr<Method> method;

  bool makes_blocks() const { return recipe.needs.gradients->use == Use::kBlock; }
  bool done(int block) const {
    if (state.failure) return true;
    const auto at = static_cast<std::size_t>(block);
    return makes_blocks() ? state.done[at] : !state.statistics[at].is_null();
  }
};

class Walk {
 public:
  // `others`: names of recipes that need no walk of this size any more.
  Walk(Schedule& schedule, int samples, int length, std::vector<User> users,
       const std::vector<std::string>& others)
      : s_(schedule),
        samples_(samples),
        length_(length),
        users_(std::move(users)),
        others_(others) {}

  // False: stopped.
  bool run() {
    const int blocks = static_cast<int>(s_.model.config().blocks);
    std::vector<bool> done;
    for (int block = 0; block < blocks; ++block) {
      done.push_back(std::ranges::all_of(users_, [&](const User& u) { return u.done(block); }));
    }
    if (std::ranges::find(done, false) != done.end() && !walk(done)) return false;
    for (User& user : users_) {
      if (user.state.failure) continue;
      if (user.makes_blocks()) {
        user.state.done.assign(user.state.done.size(), true);
        continue;
      }
      share_statistics(user);
      (void)decide_or_fail(s_, user.number, user.recipe, user.state.statistics, user.state);
      if (stop_requested()) return false;
    }
    return true;
  }

 private:
  bool stop_requested() {
    return s_.mesh.world().all_reduce_max(s_.monitor.stop_requested() ? 1 : 0) == 1;
  }

  // Those that this team made, on all ranks.
  void share_statistics(User& user) {
    nlohmann::json mine = nlohmann::json::object();
    for (const int block : taken_) {
      const nlohmann::json& of_block = user.state.statistics[block];
      if (s_.mesh.team().rank() == 0) mine[std::to_string(block)] = of_block;
    }
    const std::string text = mine.dump();
    for (const auto& part : s_.mesh.world().all_gather(std::as_bytes(std::span(text)))) {
      const char* const begin = reinterpret_cast<const char*>(part.data());
      const nlohmann::json theirs = nlohmann::json::parse(begin, begin + part.size());
      for (const auto& [block, statistics] : theirs.items())
        user.state.statistics[std::stoul(block)] = statistics;
    }
  }

  // What is going to happen, and for whom: a recipe that was added to a run cannot use the walk of those before it.
  void announce(const std::vector<bool>& done) const {
    if (s_.mesh.world().rank() != 0) return;
    const auto joined = [](const std::vector<std::string>& names) {
      std::string text;
      for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
      return text;
    };
    std::vector<std::string> names;
    for (const User& user : users_) names.push_back(user.recipe.name);
    std::string line =
        fmt::format("gradients of {} x {} tokens: a walk through the model, for {} of {}", samples_,
                    length_, counted(std::ranges::count(done, false), "block"), joined(names));
    if (!others_.empty()) line += " (" + joined(others_) + " had one before)";
    s_.monitor.say(line);
  }

  bool walk(const std::vector<bool>& done) {
    announce(done);
    const Samples samples = s_.gradient_samples(*users_.front().recipe.needs.gradients);
    GradientSums wanted;
    for (const User& user : users_) {
      wanted.sum = wanted.sum || user.recipe.needs.gradients->sums.sum;
      wanted.squares = wanted.squares || user.recipe.needs.gradients->sums.squares;
    }
    const bool finished = walk_all_gradients(
        {.backend = s_.backend,
         .mesh = s_.mesh,
         .model = s_.model,
         .decoder = s_.decoder,
         .samples = samples,
         .store = s_.store,
         .budget = s_.budget,
         .saved_activation_bytes = s_.saved_activation_bytes,
         .monitor = s_.monitor,
         .wanted = wanted,
         .folder = gradient_folder(samples_, length_),
         .take = [&](const BlockSite& site, BlockWeights& weights,
                     BlockGradients& gradients) { take(site, weights, gradients); }},
        done);
    tell_lengths();
    for (auto& [number, failure] : s_.failures.share(s_.mesh.world())) {
      for (User& user : users_) {
        if (user.number == number) user.state.failure = failure;
      }
    }
    return finished;
  }

  void take(const BlockSite& site, BlockWeights& weights, BlockGradients& gradients) {
    SummedGradients sums;
    const bool usable = settle_dropped(site, gradients);
    for (std::size_t i = 0; usable && i < site.decoder.linears().size(); ++i) {
      sums.push_back(gradients.finish(static_cast<int>(i)));
    }
    std::map<std::string, nlohmann::json> made;  // statistics, by their settings
    for (User& user : users_) {
      if (user.done(site.block)) continue;
      if (!usable) {
        fail(user, site, too_many_dropped_);
        continue;
      }
      BlockTask task{site,      s_.model.checkpoint(),     weights,           nullptr, nullptr,
                     s_.budget, s_.saved_activation_bytes, decision_of(user), &sums};
      try {
        if (user.makes_blocks()) {
          make_unit(s_, user.recipe, *user.method, task, std::chrono::steady_clock::now(), 0.0);
          if (task.commits()) committed_.push_back(block_key(user.recipe.name, site.block));
        } else {
          make_statistics(user, task, made);
        }
      } catch (const UnquantizableError& error) {  // on all ranks of the team alike
        fail(user, site, error.what());
      }
      s_.monitor.tick();
    }
    finish_writing(s_);  // before the gradient goes from which the block could be made again
    taken_.push_back(site.block);
  }

  // Of the team alike.
  void fail(User& user, const BlockSite& site, const std::string& what) {
    user.state.failure = RecipeFailure{.block = site.block, .reason = what};
    if (site.team.rank() == 0) note_failure(s_, user.number, user.recipe, site.block, what);
  }

  // Which samples the block's sums lack goes to the journal. False: too many, as too_many_dropped_ then says.
  bool settle_dropped(const BlockSite& site, const BlockGradients& gradients) {
    try {
      nlohmann::json event = gradients.settle_dropped();
      if (event.empty() || site.team.rank() != 0) return true;
      event["event"] = "dropped_gradients";
      event["block"] = site.block;
      s_.monitor.event(event);
      return true;
    } catch (const UnquantizableError& error) {  // on all ranks of the team alike
      too_many_dropped_ = error.what();
      return false;
    }
  }

  const nlohmann::json& decision_of(const User& user) const {
    return user.makes_blocks() && user.state.decision ? *user.state.decision : nothing_decided_;
  }

  void make_statistics(User& user, BlockTask& task, std::map<std::string, nlohmann::json>& made) {
    const auto start = std::chrono::steady_clock::now();
    const std::string settings = user.recipe.method + " " + user.method->statistics_settings();
    if (!made.contains(settings)) {
      with_place_named(fmt::format("{}, {}", user.recipe.name, unit_name(task.block, task.decoder)),
                       [&] { made[settings] = user.method->statistics(task); });
    }
    if (task.team.rank() != 0) return;
    user.state.statistics[task.block] = made[settings];
    Record record;
    record.attributes = {{kStatistics, made[settings]},
                         {kMadeOf, contents_of_block(s_.model, task.block)},
                         {kComputedBy, s_.backend.computes_as()}};
    const std::string key = statistics_key(user.recipe.name, task.block);
    s_.store.commit(key, record);
    committed_.push_back(key);
    s_.monitor.event({{"event", "statistics"},
                      {"recipe", user.recipe.name},
                      {"block", task.block},
                      {"seconds", seconds_since(start)},
                      {"ranks", task.team.size()},
                      {"statistics", made[settings]}});
  }

  // What a team's first rank has committed the others expect to see.
  void tell_lengths() {
    nlohmann::json lengths = nlohmann::json::object();
    for (const std::string& key : committed_) lengths[key] = s_.store.bytes(key);
    const std::string text = lengths.dump();
    for (const auto& part : s_.mesh.world().all_gather(std::as_bytes(std::span(text)))) {
      const char* const begin = reinterpret_cast<const char*>(part.data());
      const nlohmann::json theirs = nlohmann::json::parse(begin, begin + part.size());
      for (const auto& [key, length] : theirs.items()) {
        s_.store.expect(key, length.get<std::uint64_t>());
      }
    }
  }

  Schedule& s_;
  int samples_, length_;
  std::vector<User> users_;
  const std::vector<std::string>& others_;
  const nlohmann::json nothing_decided_;
  std::string too_many_dropped_;
  std::vector<int> taken_;              // blocks, by this rank's team
  std::vector<std::string> committed_;  // records, by this rank
};

// On one rank.
void remove_unused_gradients(const GradientUsers& users, RunStore& store) {
  std::set<std::string> used;
  for (const auto& [size, recipes] : users) used.insert(gradient_folder(size.first, size.second));
  for (const std::string& key : store.keys("gradients")) {
    const std::size_t at = key.find("/at-");
    if (at != key.npos && !used.contains(key.substr(0, at))) store.remove(key);
  }
}

// Recipes that ask for gradients of this size, and are none of those who wait for them.
std::vector<std::string> with_gradients_made(const std::vector<Recipe>& recipes,
                                             const std::pair<int, int>& size,
                                             const std::vector<std::size_t>& waiting) {
  std::vector<std::string> names;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    const auto& gradients = recipes[r].needs.gradients;
    if (!gradients || std::pair(gradients->samples, gradients->sequence_length) != size) continue;
    if (std::ranges::find(waiting, r) == waiting.end()) names.push_back(recipes[r].name);
  }
  return names;
}

}  // namespace

GradientUsers gradient_users(const std::vector<Recipe>& recipes,
                             const std::vector<RecipeState>& states) {
  GradientUsers users;
  for (std::size_t r = 0; r < recipes.size(); ++r) {
    const auto& gradients = recipes[r].needs.gradients;
    if (!gradients) continue;
    if (states[r].failure) continue;
    const bool waits =
        gradients->use == Use::kBlock ? states[r].missing() > 0 : !states[r].decision.has_value();
    if (waits) users[{gradients->samples, gradients->sequence_length}].push_back(r);
  }
  return users;
}

std::string gradient_folder(int samples, int length) {
  return fmt::format("gradients/{}x{}", samples, length);
}

bool make_from_gradients(Schedule& schedule, const std::vector<Recipe>& recipes,
                         std::vector<RecipeState>& states) {
  const GradientUsers all = gradient_users(recipes, states);
  Communicator& world = schedule.mesh.world();
  if (world.rank() == 0) remove_unused_gradients(all, schedule.store);
  for (const auto& [size, members] : all) {
    std::vector<User> users;
    for (const std::size_t r : members) {
      users.push_back({.number = r,
                       .recipe = recipes[r],
                       .state = states[r],
                       .method = schedule.method_of(recipes[r])});
      User& user = users.back();
      if (user.makes_blocks() && user.recipe.needs.decision) {
        if (!user.state.decision) (void)decide_or_fail(schedule, r, user.recipe, {}, user.state);
        if (world.all_reduce_max(schedule.monitor.stop_requested() ? 1 : 0) == 1) return false;
      }
    }
    const std::vector<std::string> others = with_gradients_made(recipes, size, members);
    if (!Walk(schedule, size.first, size.second, std::move(users), others).run()) return false;
  }
  return true;
}

}  // namespace roundhouse
