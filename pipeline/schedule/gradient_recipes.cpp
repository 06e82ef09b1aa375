#include "pipeline/schedule/gradient_recipes.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <set>

#include "base/numerical_error.h"
#include "comm/together.h"
#include "pipeline/schedule/gradient_schedule.h"
#include "pipeline/schedule/unit.h"

namespace roundhouse {
namespace {

using Use = Needs::Gradients::Use;
constexpr const char* kStatistics = "statistics";

std::string statistics_key(const std::string& recipe, int block) {
  char name[48];
  std::snprintf(name, sizeof name, "/statistics/block-%04d", block);
  return "recipes/" + recipe + name;
}

// Those that are there, by block; rank 0 reads, all ranks know. Null: missing.
std::vector<nlohmann::json> look_at_statistics(const Recipe& recipe, int blocks, RunStore& store,
                                               Communicator& world) {
  nlohmann::json found = nlohmann::json::array();
  for (int block = 0; world.rank() == 0 && block < blocks; ++block) {
    const std::optional<Record> record = store.load(statistics_key(recipe.name, block));
    found.push_back(record ? record->attributes.at(kStatistics) : nlohmann::json());
  }
  return nlohmann::json::parse(share(world, found.dump())).get<std::vector<nlohmann::json>>();
}

// A recipe that takes part in a walk.
struct User {
  std::size_t number;  // among all recipes
  const Recipe& recipe;
  RecipeState& state;
  std::unique_ptr<Method> method;
  nlohmann::json decision;
  std::vector<nlohmann::json> statistics;  // by block; of those who ask for them

  bool makes_blocks() const { return recipe.needs.gradients->use == Use::kBlock; }
  bool done(int block) const {
    if (state.failure) return true;
    const auto at = static_cast<std::size_t>(block);
    return makes_blocks() ? state.done[at] : !statistics[at].is_null();
  }
};

class Walk {
 public:
  Walk(Schedule& schedule, int samples, int length, std::vector<User> users)
      : s_(schedule), samples_(samples), length_(length), users_(std::move(users)) {}

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
      (void)decide_or_fail(s_, user.number, user.recipe,
                           look_at_statistics(user.recipe, blocks, s_.store, s_.mesh.world()),
                           user.state);
      if (stop_requested()) return false;
    }
    return true;
  }

 private:
  bool stop_requested() {
    return s_.mesh.world().all_reduce_max(s_.monitor.stop_requested() ? 1 : 0) == 1;
  }

  bool walk(const std::vector<bool>& done) {
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
         .shape = s_.shape,
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
    for (std::size_t i = 0; i < site.shape.linears().size(); ++i) {
      sums.push_back(gradients.finish(static_cast<int>(i)));
    }
    std::map<std::string, nlohmann::json> made;  // statistics, by their settings
    for (User& user : users_) {
      if (user.done(site.block)) continue;
      BlockTask task{site,      s_.model.checkpoint(),     weights,       nullptr, nullptr,
                     s_.budget, s_.saved_activation_bytes, user.decision, &sums};
      try {
        if (user.makes_blocks()) {
          make_unit(s_, user.recipe, *user.method, task, std::chrono::steady_clock::now(), 0.0);
        } else {
          make_statistics(user, task, made);
        }
      } catch (const UnquantizableError& error) {  // on all ranks of the team alike
        user.state.failure = RecipeFailure{.block = site.block, .reason = error.what()};
        if (site.team.rank() == 0)
          note_failure(s_, user.number, user.recipe.name, site.block, error.what());
      }
      s_.monitor.tick();
    }
    site.team.barrier();
    report(site);
  }

  void make_statistics(const User& user, BlockTask& task,
                       std::map<std::string, nlohmann::json>& made) {
    const std::string settings = user.recipe.method + " " + user.method->statistics_settings();
    if (!made.contains(settings)) {
      with_place_named(user.recipe.name + ", block " + std::to_string(task.block),
                       [&] { made[settings] = user.method->statistics(task); });
    }
    if (task.team.rank() != 0) return;
    Record record;
    record.attributes = {{kStatistics, made[settings]},
                         {kMadeOf, contents_of_block(s_.model, task.block)},
                         {kComputedBy, s_.backend.computes_as()}};
    const std::string key = statistics_key(user.recipe.name, task.block);
    s_.store.commit(key, record);
    s_.monitor.event({{"event", "statistics"},
                      {"recipe", user.recipe.name},
                      {"block", task.block},
                      {"statistics", made[settings]}});
  }

  void report(const BlockSite& site) {
    const auto now = std::chrono::steady_clock::now();
    if (last_ && site.team.rank() == 0) {
      s_.monitor.event({{"event", "gradients_block"},
                        {"samples", samples_},
                        {"length", length_},
                        {"block", site.block},
                        {"seconds", std::chrono::duration<double>(now - *last_).count()},
                        {"ranks", site.team.size()}});
    }
    last_ = now;
    taken_.push_back(site.block);
  }

  // What a team's first rank has committed the others expect to see.
  void tell_lengths() {
    nlohmann::json lengths = nlohmann::json::object();
    for (const User& user : users_) {
      for (const int block : taken_) {
        if (s_.mesh.team().rank() != 0 || user.done(block)) continue;
        const std::string key = user.makes_blocks() ? block_key(user.recipe.name, block)
                                                    : statistics_key(user.recipe.name, block);
        if (const std::uint64_t bytes = s_.store.bytes(key); bytes > 0) lengths[key] = bytes;
      }
    }
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
  std::optional<std::chrono::steady_clock::time_point> last_;
  std::vector<int> taken_;  // blocks, by this rank's team
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
  return "gradients/" + std::to_string(samples) + "x" + std::to_string(length);
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
                       .method = schedule.method_of(recipes[r]),
                       .decision = {},
                       .statistics = {}});
      User& user = users.back();
      if (!user.makes_blocks()) {
        user.statistics = look_at_statistics(
            user.recipe, static_cast<int>(schedule.model.config().blocks), schedule.store, world);
      } else if (user.recipe.needs.decision) {
        if (user.state.decision || decide_or_fail(schedule, r, user.recipe, {}, user.state))
          user.decision = *user.state.decision;
        if (world.all_reduce_max(schedule.monitor.stop_requested() ? 1 : 0) == 1) return false;
      }
    }
    if (!Walk(schedule, size.first, size.second, std::move(users)).run()) return false;
  }
  return true;
}

}  // namespace roundhouse
