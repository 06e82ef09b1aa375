// The steps that are planned are those that the walk does: on every mesh, from the beginning and after an end in the middle; and
// the bytes that are reckoned for them are sent.
#include "pipeline/schedule/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "base/random.h"
#include "comm/counted_communicator.h"
#include "pipeline/plan/cost_model.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/schedule/unit.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"
#include "tests/pipeline/schedule/meshes.h"
#include "tests/pipeline/schedule/narrow_model.h"
#include "tests/support/passing_store.h"

namespace roundhouse {
namespace {

constexpr int kBlocks = 6, kShards = 4, kLength = 64;
constexpr double kAlwaysInterrupted = 1e-12;  // hours: a snapshot after each block
constexpr double kNever = 0;

std::vector<Recipe> recipes_of(const std::vector<nlohmann::json>& settings) {
  std::vector<Recipe> recipes;
  for (const nlohmann::json& each : settings) recipes.push_back(parse_recipe(each));
  return recipes;
}
std::vector<Recipe> all_kinds() {
  const nlohmann::json gradients = {{"samples", 6}, {"sequence_length", kLength}};
  return recipes_of(
      {{{"method", "gptq"}, {"bits", 4}},
       {{"method", "rtn"}, {"bits", 3}},
       {{"method", "squeezellm"}, {"bits", 3}, {"sparse", true}, {"gradients", gradients}},
       {{"method", "llm-mq"}, {"bits", 3.0}, {"gradients", gradients}},
       {{"method", "gptq"}, {"bits", 2}}});
}

Samples few_samples() {
  Random random(3);
  std::vector<std::int32_t> ids(6 * kLength);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(1024));
  return Samples(6, kLength, kShards, ids);
}

bool is_unit(const std::string& line) {
  return line.starts_with("commit ") && line.find("/block-") != line.npos &&
         line.find("/statistics/") == line.npos;
}

// Says what is committed and loaded, once in a row: shards are many.
class WatchedStore final : public PassingStore {
 public:
  using PassingStore::PassingStore;
  void commit(const std::string& key, const Record& record) override {
    PassingStore::commit(key, record);
    note("commit ", key);
  }
  std::optional<Record> load(const std::string& key) override {
    note("load ", key);
    return PassingStore::load(key);
  }

  std::vector<std::string> units;  // blocks, which are written beside what comes next
  std::vector<std::string> seen;   // all else

 private:
  void note(const std::string& what, const std::string& key) {
    const std::lock_guard lock(mutex_);
    // What recipes share, and what gradients leave between blocks, is no step of its own.
    if (!key.starts_with("recipes/")) return;
    const std::size_t shard = key.find("/shard-");
    const std::string line = what + key.substr(0, shard);
    if (line.find("load ") == 0 && key.find("/statistics/") != key.npos) return;
    if (is_unit(line)) {
      units.push_back(line);
    } else if (seen.empty() || seen.back() != line) {
      seen.push_back(line);
    }
  }
  std::mutex mutex_;
};

// What of a rank's steps can be seen in its store.
std::vector<std::string> expected_lines(const std::vector<Step>& steps,
                                        const std::vector<Recipe>& recipes, const Mesh& mesh,
                                        bool snapshots) {
  std::vector<std::string> lines;
  const bool leads = mesh.team().rank() == 0;
  const PartRange shards = parts_of_rank(kShards, mesh.team().rank(), mesh.team().size());
  for (const Step& step : steps) {
    const std::string& name = recipes[step.recipe].name;
    const auto without_shard = [](const std::string& key) {
      return key.substr(0, key.find("/shard-"));
    };
    switch (step.kind) {
      case Step::Kind::kMake:
        if (mesh.team().rank() == committer_of(step.block, mesh.team().size()))
          lines.push_back("commit " + block_key(name, step.block));
        break;
      case Step::Kind::kStatistics:
        if (leads) {
          char key[64];
          std::snprintf(key, sizeof key, "/statistics/block-%04d", step.block);
          lines.push_back("commit recipes/" + name + key);
        }
        break;
      case Step::Kind::kDecide:
        if (mesh.world().rank() == 0) lines.push_back("commit " + decision_key(name));
        break;
      case Step::Kind::kReplay:
        if (recipes[step.recipe].needs.quantized_stream)
          lines.push_back("load " + block_key(name, step.block));
        break;
      case Step::Kind::kLoad:
        if (recipes[step.recipe].needs.quantized_stream && shards.begin < shards.end)
          lines.push_back("load " + without_shard(snapshot_key(name, step.block, 0)));
        break;
      case Step::Kind::kSnapshotIfDue:
        if (snapshots && shards.begin < shards.end)
          lines.push_back("commit " + without_shard(snapshot_key(name, step.block, 0)));
        break;
      default:
        break;
    }
  }
  return lines;
}

class Walker {
 public:
  // `most`: recipes of a wave.
  Walker(std::vector<Recipe> recipes, double hours, int most = 1)
      : recipes_(std::move(recipes)), hours_(hours), most_(most) {
    identity_.note_outside_blocks();
  }

  std::vector<RecipeState> look(RunStore& store) {
    std::vector<RecipeState> states;
    for (const Recipe& recipe : recipes_)
      states.push_back(inspect_recipe(recipe, kBlocks, kShards, store, *world_));
    return states;
  }

  // Everything that is missing; stops after so many units of this rank's. Compares what was planned with what was done.
  void run(RunStore& inner, MeshShape shape, int units_until_stop = 0) {
    const Meshes meshes(*world_, shape, recipes_, kBlocks, *backend_);
    meshes.name_writer(inner);
    JobMonitor monitor(*world_, nullptr, 60, 0);
    ActivationBudget budget(std::size_t{1} << 30, folder_.path());
    const std::vector<RecipeState> states = look(inner);
    const std::vector<Wave> waves = waves_of_up_to(most_, recipes_, states, shape, meshes.lane_of);
    WatchedStore store(inner);
    int units = 0;
    Schedule schedule{.backend = *backend_,
                      .mesh = meshes.all,
                      .lane = meshes.own_lane(),
                      .model = model_,
                      .identity = identity_,
                      .decoder = *decoder_,
                      .samples = {{kDefaultCalibration, samples_}},
                      .store = store,
                      .budget = budget,
                      .saved_activation_bytes = std::size_t{1} << 30,
                      .monitor = monitor,
                      .interruption_hours = hours_,
                      .waves = waves,
                      .on_unit =
                          [&](const Recipe&, const QuantizedBlock&, double) {
                            if (++units == units_until_stop) monitor.watchdog().request_stop();
                          },
                      .on_finished = {},
                      .gradient_samples = [&](const Needs::Gradients&) { return samples_; }};
    const std::uint64_t before = sent_;
    std::vector<RecipeState> walked = states;
    (void)quantize_all(schedule, recipes_, walked);
    sent_by_run = sent_ - before;
    steps = plan_steps(recipes_, states, shape, kBlocks, meshes.lane_of, waves);
    std::vector<std::string> units_expected, expected;
    for (const std::string& line :
         expected_lines(steps[meshes.all.stage()], recipes_, meshes.all, hours_ > 0)) {
      (is_unit(line) ? units_expected : expected).push_back(line);
    }
    const auto compare = [&](const auto& found, const auto& planned) {
      if (units_until_stop == 0) {
        EXPECT_EQ(found, planned) << describe(shape);
      } else {
        ASSERT_LE(found.size(), planned.size());
        EXPECT_TRUE(std::equal(found.begin(), found.end(), planned.begin()));
      }
    };
    compare(store.units, units_expected);
    compare(store.seen, expected);
  }

  Communicator& world() { return *world_; }
  const std::vector<Recipe>& recipes() const { return recipes_; }
  const DecoderBlock& decoder() const { return *decoder_; }
  const ModelConfig& model() const { return model_.config(); }
  std::vector<std::vector<Step>> steps;  // of the last run
  std::uint64_t sent_by_run = 0;

 private:
  std::atomic<std::uint64_t> sent_ = 0;
  std::unique_ptr<Communicator> world_ =
      count_bytes(test_world().split(0, test_world().rank()), sent_);
  std::vector<Recipe> recipes_;
  double hours_;
  int most_;
  TemporaryFolder folder_;
  CausalLM model_{narrow_model()};
  NullMonitor quiet_;
  ModelIdentity identity_{model_, folder_.path(), *world_, quiet_, true};
  Samples samples_ = few_samples();
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), kLength, *backend_);
};

TEST(PlannerTest, TheWalkDoesWhatIsPlanned) {
  std::vector<MeshShape> meshes = all_meshes(test_world().size(), kBlocks);
  if (meshes.size() == 1) meshes.push_back(meshes.front());
  int most = 1;
  for (const MeshShape shape : meshes) {
    const SharedFolder folder(test_world());
    Hdf5Store store(folder.path());
    Walker(all_kinds(), kAlwaysInterrupted, most).run(store, shape);
    most = most == 1 ? 8 : 1;
  }
}

TEST(PlannerTest, AlsoAfterAnEndInTheMiddle) {
  for (const MeshShape shape : meshes_of_one_lane(test_world().size(), kBlocks)) {
    for (const auto& [hours, most] : {std::pair{kAlwaysInterrupted, 8}, {kNever, 1}}) {
      const SharedFolder folder(test_world());
      Hdf5Store store(folder.path());
      Walker walker(
          recipes_of(
              {{{"method", "gptq"}}, {{"method", "rtn"}}, {{"method", "gptq"}, {"bits", 2}}}),
          hours, most);
      walker.run(store, shape, 2);
      test_world().barrier();
      walker.run(store, shape);
    }
  }
}

TEST(PlannerTest, AlsoWhereBlocksWithinAreMissing) {
  int most = 1;
  for (const MeshShape shape : meshes_of_one_lane(test_world().size(), kBlocks)) {
    most = most == 1 ? 8 : 1;
    const SharedFolder folder(test_world());
    Hdf5Store store(folder.path());
    Walker walker(recipes_of({{{"method", "gptq"}},
                              {{"method", "rtn"}},
                              {{"method", "squeezellm"},
                               {"gradients", {{"samples", 6}, {"sequence_length", kLength}}}},
                              {{"method", "awq"}, {"scale_search", false}},
                              {{"method", "awq"}, {"bits", 3}, {"scale_search", false}}}),
                  kNever, most);
    walker.run(store, shape);
    test_world().barrier();
    if (test_world().rank() == 0) {
      for (const int block : {2, 4}) store.remove(block_key(walker.recipes()[0].name, block));
      store.remove(block_key(walker.recipes()[1].name, 5));
      store.remove(block_key(walker.recipes()[2].name, 1));
      store.remove(block_key(walker.recipes()[3].name, 0));
      store.remove(block_key(walker.recipes()[4].name, 4));
    }
    test_world().barrier();
    walker.run(store, shape);
  }
}

// Of methods' messages and activations every byte; what else is sent are the few words by which ranks agree.
TEST(PlannerTest, AsManyBytesAreSentAsReckoned) {
  for (const nlohmann::json& settings :
       std::vector<nlohmann::json>{{{"method", "gptq"}},
                                   {{"method", "gptq"}, {"true_sequential", false}},
                                   {{"method", "rtn"}},
                                   {{"method", "awq"}}}) {
    RunConfig config;
    config.recipes = recipes_of({settings});
    config.calibration.samples = 6;
    config.calibration.sequence_length = kLength;
    config.calibration.shards = kShards;
    const DeviceRates rates = rates_of_device("cpu");
    for (const MeshShape shape : meshes_of_one_lane(test_world().size(), kBlocks)) {
      const SharedFolder folder(test_world());
      Hdf5Store store(folder.path());
      Walker walker(config.recipes, kNever);
      walker.run(store, shape);
      const CostModel costs({.config = config,
                             .model = walker.model(),
                             .decoder = walker.decoder(),
                             .rates = rates,
                             .ranks = test_world().size(),
                             .mesh = shape});
      double reckoned = 0;
      for (const auto& steps : walker.steps) {
        for (const Step& step : steps) {
          if (step.kind == Step::Kind::kMake) reckoned += costs.unit_traffic(step).sent;
          if (step.kind == Step::Kind::kHandOver) reckoned += costs.stream_bytes(step);
        }
      }
      const auto sent = static_cast<double>(
          test_world().all_reduce_sum(static_cast<std::int64_t>(walker.sent_by_run)));
      EXPECT_LE(reckoned, sent) << settings.dump();
      constexpr double kWordsOfABlock = 600;
      EXPECT_LT(sent - reckoned, kWordsOfABlock * kBlocks * test_world().size())
          << settings.dump() << " " << describe(shape) << ": " << reckoned;
    }
  }
}

TEST(PlannerTest, WavesAreOfOneLaneAndCalibrationSet) {
  std::vector<Recipe> recipes = recipes_of({{{"method", "gptq"}, {"bits", 2}},
                                            {{"method", "awq"}},
                                            {{"method", "rtn"}},
                                            {{"method", "gptq"}, {"bits", 3}},
                                            {{"method", "squeezellm"}},
                                            {{"method", "gptq"}, {"bits", 4}},
                                            {{"method", "rtn"}, {"bits", 3}}});
  recipes[5].calibration = "other";
  std::vector<RecipeState> states = fresh_states(recipes, kBlocks);
  const auto waves = [&](int most, const std::vector<int>& lane_of = {}, std::size_t room = 100) {
    return form_waves(recipes, states, lane_of, most,
                      [=](const Wave& wave) { return wave.size() <= room; });
  };
  using Waves = std::vector<Wave>;
  EXPECT_EQ(waves(8), (Waves{{0, 3, 1}, {2, 6}, {5}})) << "those of a method are neighbours";
  EXPECT_EQ(waves(2), (Waves{{0, 1}, {2, 6}, {3}, {5}}));
  EXPECT_EQ(waves(8, {}, 2), waves(2)) << "no more than fit";
  EXPECT_EQ(waves(1).size(), 6u);
  constexpr int kAll = Lane::kAllLanes;
  EXPECT_EQ(waves(8, {0, 1, kAll, 1, kAll, 0, kAll}), (Waves{{0}, {1, 3}, {2, 6}, {5}}));
  states[3].failure = RecipeFailure{};
  EXPECT_EQ(waves(8), (Waves{{0, 1}, {2, 6}, {5}}));
  EXPECT_EQ(waves_of({1, 2, 5, 6}, waves(8)), (Waves{{1}, {2, 6}, {5}}));
  EXPECT_EQ(waves_of({1, 4}, {}), (Waves{{1}, {4}})) << "those of none go alone";
}

// The longest first, each to the lane that has least so far.
TEST(PlannerTest, RecipesAreDealtByWhatTheyTake) {
  constexpr int kAll = Lane::kAllLanes;
  EXPECT_EQ(deal_recipes({1, 0, 5, 3, 3}, 2), (std::vector<int>{0, kAll, 0, 1, 1}));
  EXPECT_EQ(deal_recipes({2, 2, 2}, 4), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(deal_recipes({2, 0}, 1), (std::vector<int>{0, kAll}));
}

}  // namespace
}  // namespace roundhouse
