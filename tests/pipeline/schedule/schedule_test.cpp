// The walk through recipes and blocks: whatever the mesh, and wherever a run was cut off, the records have the same bytes.
#include "pipeline/schedule/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/numerical_error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/run/whole_records.h"
#include "pipeline/schedule/recipe_failure.h"
#include "stages/quantize/row_tiles.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"
#include "tests/model/model_files.h"
#include "tests/pipeline/schedule/meshes.h"
#include "tests/pipeline/schedule/narrow_model.h"
#include "tests/support/memory_store.h"
#include "tests/support/passing_store.h"

namespace roundhouse {
namespace {

constexpr int kBlocks = 6, kShards = 4;
constexpr double kAlwaysInterrupted = 1e-12;  // hours: a snapshot after each block

std::vector<Recipe> recipes() {
  return {parse_recipe({{"method", "gptq"}, {"bits", 4}, {"group_size", 32}}),
          parse_recipe({{"method", "rtn"}, {"bits", 3}, {"group_size", 32}}),
          parse_recipe({{"method", "gptq"}, {"bits", 2}, {"group_size", 32}})};
}

Samples few_samples() {
  Random random(3);
  std::vector<std::int32_t> ids(6 * 64);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random.below(1024));
  return Samples(6, 64, kShards, ids);
}

class Walker {
 public:
  explicit Walker(Communicator& world, double interruption_hours = kAlwaysInterrupted,
                  const std::filesystem::path& model = narrow_model())
      : world_(world), hours_(interruption_hours), model_(model) {
    identity_.note_outside_blocks();
  }
  void make(const Recipe& recipe) { recipes_ = {recipe}; }
  void make(const Recipe& recipe, std::function<std::unique_ptr<Method>()> method) {
    make(recipe);
    method_of_ = [method = std::move(method)](const Recipe&) { return method(); };
  }

  void make(std::vector<Recipe> made,
            std::function<std::unique_ptr<Method>(const Recipe&)> method_of) {
    recipes_ = std::move(made);
    method_of_ = std::move(method_of);
  }
  void go_in_waves_of(int most) { most_ = most; }                     // recipes
  const std::vector<RecipeState>& states() const { return states_; }  // after run()

  // Everything that is missing in the store; false if stopped.
  bool run(
      RunStore& store, MeshShape shape, std::function<void(JobMonitor&, int)> on_unit = nullptr,
      std::function<bool(const Mesh&, const std::vector<std::size_t>&)> on_finished = nullptr) {
    const Meshes meshes(world_, shape, recipes_, kBlocks, *backend_);
    meshes.name_writer(store);
    JobMonitor monitor(world_, nullptr, 60, 0);
    ActivationBudget budget(std::size_t{1} << 30, folder_.path());
    states_.clear();
    for (const Recipe& recipe : recipes_) {
      states_.push_back(inspect_recipe(recipe, recipe.units(kBlocks), kShards, store, world_));
    }
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
                      .waves = waves_of_up_to(most_, recipes_, states_, shape, meshes.lane_of),
                      .on_unit =
                          [&](const Recipe&, const QuantizedBlock& block, double) {
                            ++units;
                            if (block.record.at("read_bytes") > 0) ++blocks_read_;
                            // For the journal, where "time" is the date.
                            const nlohmann::json& phases = block.record.at("phases");
                            const auto is_original = &QuantizedLinear::original;
                            EXPECT_GT(phases.value("solve", 0.0) + phases.value("gather", 0.0) +
                                          (std::ranges::all_of(block.linears, is_original)
                                               ? phases.at("output").get<double>()
                                               : 0.0),
                                      0);
                            EXPECT_GT(phases.at("commit").get<double>(), 0);
                            EXPECT_FALSE(block.record.contains("time"));
                            if (on_unit) on_unit(monitor, units);
                          },
                      .on_finished =
                          [&](const std::vector<std::size_t>& finished) {
                            return !on_finished || on_finished(meshes.of_recipes(), finished);
                          },
                      .gradient_samples = {}};
    if (method_of_) schedule.method_of = method_of_;
    const bool finished = quantize_all(schedule, recipes_, states_);
    units_told_ = units;
    return finished;
  }
  int blocks_read() const { return blocks_read_; }  // of the model's files, for units of this rank
  int units_told() const { return units_told_; }  // of this rank's, before the last run() returned

 private:
  Communicator& world_;
  double hours_;
  TemporaryFolder folder_;
  CausalLM model_;
  NullMonitor quiet_;
  ModelIdentity identity_{model_, folder_.path(), world_, quiet_, true};
  std::vector<Recipe> recipes_ = recipes();
  std::vector<RecipeState> states_;
  int units_told_ = 0, blocks_read_ = 0;
  int most_ = 1;
  std::function<std::unique_ptr<Method>(const Recipe&)> method_of_;
  Samples samples_ = few_samples();
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), 64, *backend_);
};

// The bytes of all that is made of recipes.
std::map<std::string, std::string> contents(RunStore& store,
                                            const std::vector<Recipe>& made = recipes()) {
  std::map<std::string, std::string> all;
  for (const Recipe& recipe : made) {
    for (const std::string& key : record_keys(recipe, kBlocks)) {
      const auto record = store.load(key);
      if (!record) continue;
      all[key] = record->attributes.dump();
      for (const auto& [name, tensor] : record->tensors) {
        all[key] += "|" + name + "|";
        all[key].append(reinterpret_cast<const char*>(tensor.bytes().data()),
                        tensor.bytes().size());
      }
    }
  }
  return all;
}

// Made once: every rank makes it alone.
const std::map<std::string, std::string>& undisturbed() {
  static const auto all = [] {
    const auto alone = make_local_communicator();
    MemoryStore store;
    EXPECT_TRUE(Walker(*alone).run(store, {1, 1}));
    return contents(store);
  }();
  return all;
}

TEST(ScheduleTest, ResumesAfterAFailureAtAnyWrite) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed();
  ASSERT_EQ(expected.size(), 3u * kBlocks);
  Walker walker(test_world());
  // 3 x 6 blocks and 2 recipes x 5 snapshots x 4 shards are 58 writes.
  for (int n = 1; n <= 58; n += 6) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(contents(store), expected) << "after a failure at write " << n;
  }
}

// A method that learns in steps goes on in the middle of a block, and leaves nothing of that when the block is there.
TEST(ScheduleTest, ResumesInTheMiddleOfABlock) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const Recipe recipe =
      parse_recipe({{"method", "signround"}, {"bits", 3}, {"iterations", 4}, {"batch_size", 2}});
  Walker never(test_world(), 0), always(test_world());
  never.make(recipe);
  always.make(recipe);
  MemoryStore store;
  EXPECT_TRUE(never.run(store, {1, 1}));
  const auto expected = contents(store, {recipe});
  ASSERT_EQ(expected.size(), static_cast<std::size_t>(kBlocks));
  const auto progress = [&](MemoryStore& of) {
    return std::ranges::count_if(of.keys("recipes"), [](const std::string& key) {
      return key.find("/progress/") != key.npos;
    });
  };
  int in_the_middle = 0;
  for (int n = 1; n < 150; n += 13) {
    MemoryStore cut;
    cut.fail_at_write(n);
    EXPECT_THROW(always.run(cut, {1, 1}), Error) << "write " << n;
    if (progress(cut) > 0) ++in_the_middle;
    cut.fail_at_write(0);
    EXPECT_TRUE(always.run(cut, {1, 1}));
    EXPECT_EQ(contents(cut, {recipe}), expected) << "after a failure at write " << n;
    EXPECT_EQ(progress(cut), 0);
  }
  EXPECT_GT(in_the_middle, 3);
}

TEST(ScheduleTest, MakesADamagedBlockAgainAndNoOther) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed();
  MemoryStore store;
  Walker walker(test_world());
  EXPECT_TRUE(walker.run(store, {1, 1}));
  store.damage(block_key(recipes()[0].name, 3));
  int made = 0;
  EXPECT_TRUE(walker.run(store, {1, 1}, [&](JobMonitor&, int units) { made = units; }));
  EXPECT_EQ(made, 1);
  EXPECT_EQ(contents(store), expected);
}

TEST(ScheduleTest, SameBytesOnEveryMesh) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    EXPECT_TRUE(Walker(world).run(store, shape));
    world.barrier();
    EXPECT_EQ(contents(store), expected) << describe(shape);
  }
}

// The head and the embedding are one unit more, behind the last block, on the last stage; in a wave beside a recipe without.
TEST(ScheduleTest, SameBytesWithTheHeadOnEveryMeshAndAfterFailures) {
  const std::vector<Recipe> made = {
      parse_recipe({{"method", "gptq"}, {"group_size", 64}, {"include", {"lm_head"}}}),
      parse_recipe({{"method", "rtn"}, {"include", {"lm_head", "embed_tokens"}}}),
      parse_recipe({{"method", "gptq"}, {"bits", 2}})};
  Communicator& world = test_world();
  const auto alone = make_local_communicator();
  MemoryStore whole;
  Walker walker(*alone);
  walker.make(made, [](const Recipe& recipe) { return make_method(recipe); });
  EXPECT_TRUE(walker.run(whole, {1, 1}));
  const auto expected = contents(whole, made);
  ASSERT_EQ(expected.size(), 3u * kBlocks + 2);
  // Its error is that of its solution: less than by rounding, on inputs that the samples have.
  const auto head_of = [&](const Recipe& recipe) {
    const nlohmann::json linears =
        whole.load(block_key(recipe.name, kBlocks))->attributes.at("linears");
    return linears.at(linears.size() - 1);
  };
  EXPECT_EQ(head_of(made[0]).at("name"), "lm_head");
  EXPECT_GT(head_of(made[0]).at("record").at("relative_error").get<double>(), 0);
  EXPECT_EQ(head_of(made[1]).at("name"), "lm_head");
  int most = 1;
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    most = most == 1 ? 8 : 1;
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker team(world);
    team.make(made, [](const Recipe& recipe) { return make_method(recipe); });
    team.go_in_waves_of(most);
    EXPECT_TRUE(team.run(store, shape));
    world.barrier();
    EXPECT_EQ(contents(store, made), expected) << describe(shape);
  }
  // 20 units and, of two recipes, 6 and 5 snapshots of 4 shards.
  for (int n = 19; world.size() == 1 && n <= 33; n += 7) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(contents(store, made), expected) << "after a failure at write " << n;
  }
}

// A block that is left as it is, linears that are, and others of their own width.
TEST(ScheduleTest, SameBytesWithOverridesOnEveryMeshAndAfterFailures) {
  const std::vector<Recipe> made = {parse_recipe(nlohmann::json::parse(
      R"({"method": "gptq", "overrides": [{"match": "*.down_proj", "bits": 8},
          {"match": "*.v_proj", "skip": true}, {"match": "model.layers.2.*", "skip": true}]})"))};
  Communicator& world = test_world();
  const auto alone = make_local_communicator();
  MemoryStore whole;
  Walker walker(*alone);
  walker.make(made.front());
  EXPECT_TRUE(walker.run(whole, {1, 1}));
  const auto expected = contents(whole, made);
  ASSERT_EQ(expected.size(), static_cast<std::size_t>(kBlocks));
  for (int pipeline = 1; pipeline <= world.size(); ++pipeline) {
    if (world.size() % pipeline != 0) continue;
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker team(world);
    team.make(made.front());
    EXPECT_TRUE(team.run(store, {pipeline, world.size() / pipeline}));
    world.barrier();
    EXPECT_EQ(contents(store, made), expected) << "pipeline " << pipeline;
  }
  for (int n = 2; world.size() == 1 && n <= 26; n += 6) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(contents(store, made), expected) << "after a failure at write " << n;
  }
}

// A weight that no scale can hold: each recipe is given up at the block that has it, which is named.
TEST(FailureTest, WhatCannotBeQuantizedIsNamed) {
  Communicator& world = test_world();
  const SharedFolder model(world);
  if (world.rank() == 0) {
    const auto config = narrow_config();
    Tensors tensors = formula_tensors(config, DType::kF32);
    tensors.at("model.layers.3.self_attn.o_proj.weight").as<float>()[0] = 1e30f;
    write_model(model.path(), config, tensors);
  }
  world.barrier();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world, 0, model.path());
    EXPECT_TRUE(walker.run(store, shape));
    for (const RecipeState& state : walker.states()) {
      ASSERT_TRUE(state.failure);
      EXPECT_EQ(state.failure->block, 3);
      EXPECT_THAT(state.failure->reason,
                  testing::MatchesRegex("self_attn.o_proj, rows from 0: .*float16.*"));
    }
  }
}

// GPTQ until block 3, of which the second and the third tile of rows cannot be made: other ranks find that, or one.
class FailingMethod final : public Method {
 public:
  static Recipe recipe() {
    Recipe recipe = parse_recipe({{"method", "gptq"}, {"bits", 3}, {"group_size", 32}});
    recipe.name = "failing";
    return recipe;
  }
  Needs needs() const override { return gptq_->needs(); }
  std::vector<LinearScheme> schemes() const override { return gptq_->schemes(); }
  QuantizedBlock quantize(BlockTask& task) const override {
    if (task.block == 3) {
      share_tiles(
          task.team, 3 * kTileRows,
          [&](std::int64_t first, std::int64_t) -> TileBytes {
            if (first > 0) throw NumericalError("tile " + std::to_string(first / kTileRows));
            return {};
          },
          [](std::int64_t, TileReader&) {});
    }
    return gptq_->quantize(task);
  }

 private:
  std::unique_ptr<Method> gptq_ = make_method(recipe());
};

std::vector<Recipe> recipes_and_a_failing_one() {
  std::vector<Recipe> all = recipes();
  all.insert(all.begin() + 1, FailingMethod::recipe());
  return all;
}

std::unique_ptr<Method> method_or_failing(const Recipe& recipe) {
  if (recipe.name == "failing") return std::make_unique<FailingMethod>();
  return make_method(recipe);
}

void expect_failure(const Walker& walker) {
  for (std::size_t r = 0; r < walker.states().size(); ++r) {
    const auto& failure = walker.states()[r].failure;
    ASSERT_EQ(failure.has_value(), r == 1);
    if (!failure) continue;
    EXPECT_EQ(failure->block, 3);
    EXPECT_EQ(failure->reason, "tile 1") << "the first, whoever had it";
  }
}

// A recipe that cannot be made is left, the others have the bytes that they have without it, and a later start leaves it alone
// until it is told to forget.
TEST(FailureTest, TheOthersGoOnOnEveryMesh) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    walker.make(recipes_and_a_failing_one(), method_or_failing);
    std::vector<std::size_t> taken;
    EXPECT_TRUE(walker.run(store, shape, nullptr,
                           [&](const Mesh&, const std::vector<std::size_t>& finished) {
                             taken.insert(taken.end(), finished.begin(), finished.end());
                             return true;
                           }));
    world.barrier();
    expect_failure(walker);
    EXPECT_THAT(taken, testing::Not(testing::Contains(1u)));
    EXPECT_EQ(contents(store), expected) << describe(shape);
    EXPECT_TRUE(store.has(block_key("failing", 2)));
    EXPECT_FALSE(store.has(block_key("failing", 3)));
    EXPECT_TRUE(store.has(failure_key("failing", 3)));
    EXPECT_TRUE(store.keys("recipes/failing/activations").empty()) << "snapshots go";

    int made = 0;
    EXPECT_TRUE(walker.run(store, shape, [&](JobMonitor&, int units) { made = units; }));
    EXPECT_EQ(world.all_reduce_max(made), 0);
    expect_failure(walker);

    world.barrier();
    if (world.rank() == 0) {
      EXPECT_TRUE(forget_failures("failing", store));
    }
    world.barrier();
    walker.make(recipes_and_a_failing_one(),
                [](const Recipe& recipe) { return make_method(recipe); });
    EXPECT_TRUE(walker.run(store, shape, [&](JobMonitor&, int units) { made = units; }));
    world.barrier();
    for (const RecipeState& state : walker.states()) EXPECT_FALSE(state.failure);
    EXPECT_EQ(contents(store, {FailingMethod::recipe()}).size(), std::size_t{kBlocks});
    EXPECT_EQ(contents(store), expected);
  }
}

// Wherever a run is cut off around a failure, it goes on to the same end.
TEST(FailureTest, ResumesAroundAFailureAtAnyWrite) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed();
  Walker walker(test_world());
  walker.make(recipes_and_a_failing_one(), method_or_failing);
  // 6 blocks and 5 snapshots of 4 shards; then 3 blocks, 3 snapshots and the failure.
  for (int n = 20; n <= 50; n += 5) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    expect_failure(walker);
    EXPECT_EQ(contents(store), expected) << "after a failure at write " << n;
  }
}

// One rank asks to stop after its second unit, of whichever recipe; the next start ends as if nothing had been.
TEST(FailureTest, StopsTogetherAroundAFailure) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    std::vector<Recipe> all = recipes_and_a_failing_one();
    walker.make(all, method_or_failing);
    (void)walker.run(store, shape, [&](JobMonitor& monitor, int units) {
      if (units == 4) monitor.watchdog().request_stop();
    });
    world.barrier();
    EXPECT_TRUE(walker.run(store, shape));
    world.barrier();
    expect_failure(walker);
    EXPECT_EQ(contents(store), expected) << describe(shape);
  }
}

// What a method cannot decide for the whole model, before any block.
class UndecidedMethod final : public Method {
 public:
  Needs needs() const override { return {.decision = true}; }
  std::vector<LinearScheme> schemes() const override { return {{.bits = 4}}; }
  nlohmann::json decide(ModelTask&) const override { throw UnquantizableError("no bits fit"); }
  QuantizedBlock quantize(BlockTask&) const override { throw Error("nothing was decided"); }
};

TEST(FailureTest, WhatCannotBeDecidedIsLeftToo) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    std::vector<Recipe> all = recipes();
    Recipe undecided = all[1];
    undecided.name = "undecided";
    undecided.needs = {.decision = true};
    all.insert(all.begin(), undecided);
    walker.make(all, [](const Recipe& recipe) -> std::unique_ptr<Method> {
      if (recipe.name == "undecided") return std::make_unique<UndecidedMethod>();
      return make_method(recipe);
    });
    for (int start = 0; start < 2; ++start) {
      EXPECT_TRUE(walker.run(store, shape));
      world.barrier();
      ASSERT_TRUE(walker.states()[0].failure);
      EXPECT_EQ(walker.states()[0].failure->place(), "the whole model");
      EXPECT_THAT(walker.states()[0].failure->reason, testing::EndsWith("no bits fit"));
      EXPECT_EQ(contents(store), expected);
    }
  }
}

// Recipes with each set of streams, one of which fails at block 3.
std::vector<Recipe> recipes_of_all_streams() {
  std::vector<Recipe> all;
  for (const nlohmann::json& settings : std::vector<nlohmann::json>{
           {{"method", "awq"}, {"grid_points", 2}},
           {{"method", "gptq"}, {"bits", 4}},
           {{"method", "rtn"}, {"bits", 3}},
           {{"method", "signround"}, {"iterations", 1}, {"batch_size", 2}},
           {{"method", "awq"}, {"bits", 3}, {"grid_points", 2}},
           {{"method", "rtn"}, {"bits", 2}},
           {{"method", "signround"},
            {"iterations", 1},
            {"batch_size", 2},
            {"quantized_input", false},
            {"overrides", {{{"match", "model.layers.1.*"}, {"skip", true}}}}},
           {{"method", "awq"}, {"scale_search", false}, {"clip_search", false}}}) {
    all.push_back(parse_recipe(settings));
  }
  all.insert(all.begin() + 1, FailingMethod::recipe());
  return all;
}

class WaveTest : public testing::Test {
 protected:
  static constexpr int kMany = 100;

  // One by one. Made once: every rank makes it alone.
  const std::map<std::string, std::string>& expected() {
    static const auto all = [this] {
      const auto alone = make_local_communicator();
      MemoryStore store;
      Walker walker(*alone, 0);
      walker.make(all_, method_or_failing);
      EXPECT_TRUE(walker.run(store, {1, 1}));
      expect_failure(walker);
      return contents(store, all_);
    }();
    EXPECT_EQ(all.size(), (all_.size() - 1) * kBlocks + 3);
    return all;
  }
  // All that is missing in the store, by so many recipes at a time.
  bool run(RunStore& store, MeshShape shape, int most,
           const std::function<void(JobMonitor&, int)>& on_unit = nullptr) {
    Walker walker(test_world());
    walker.make(all_, method_or_failing);
    walker.go_in_waves_of(most);
    const bool finished = walker.run(store, shape, on_unit);
    if (finished) expect_failure(walker);
    return finished;
  }

  const std::vector<Recipe> all_ = recipes_of_all_streams();
};

TEST_F(WaveTest, SameBytesOnEveryMesh) {
  Communicator& world = test_world();
  int most = 3;
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    EXPECT_TRUE(run(store, shape, most));
    world.barrier();
    EXPECT_EQ(contents(store, all_), expected()) << describe(shape) << ", waves of " << most;
    EXPECT_TRUE(store.keys("activations").empty()) << "snapshots go";
    most = most == 3 ? kMany : 3;
  }
}

// Wherever a run is cut off, as a wave or not, it goes on to the same end, as a wave or not: recipes begin at different blocks then.
TEST_F(WaveTest, ResumesAfterAFailureAtAnyWrite) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  int before = kMany;
  for (int n = 3; n <= 72; n += 23) {
    const int after = n % 2 == 1 ? kMany : 1;
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(run(store, {1, 1}, before), Error) << "write " << n;
    store.fail_at_write(n + 40);
    EXPECT_THROW(run(store, {1, 1}, after), Error) << "write " << n << " + 40";
    store.fail_at_write(0);
    EXPECT_TRUE(run(store, {1, 1}, kMany));
    EXPECT_EQ(contents(store, all_), expected()) << "after a failure at write " << n;
    before = after;
  }
}

TEST_F(WaveTest, StopsTogetherBetweenUnitsAndGoesOn) {
  Communicator& world = test_world();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    (void)run(store, shape, kMany, [&](JobMonitor& monitor, int units) {
      if (units == 5) monitor.watchdog().request_stop();
    });
    world.barrier();
    EXPECT_TRUE(run(store, shape, kMany));
    world.barrier();
    EXPECT_EQ(contents(store, all_), expected()) << describe(shape);
  }
}

// Says what it finds when it is asked for a block.
class AskedMethod final : public Method {
 public:
  struct Found {
    std::string recipe;
    int block;
    bool original_made;
  };
  AskedMethod(const Recipe& recipe, std::vector<Found>& found)
      : name_(recipe.name), method_(make_method(recipe)), found_(found) {}
  Needs needs() const override { return method_->needs(); }
  std::vector<LinearScheme> schemes() const override { return method_->schemes(); }
  QuantizedBlock quantize(BlockTask& task) const override {
    if (task.original) found_.push_back({name_, task.block, task.original_made});
    return method_->quantize(task);
  }

 private:
  std::string name_;
  std::unique_ptr<Method> method_;
  std::vector<Found>& found_;
};

TEST_F(WaveTest, WhatRecipesShareIsDoneOnce) {
  if (test_world().size() > 1) GTEST_SKIP() << "one rank says it all";
  std::vector<AskedMethod::Found> found;
  Walker walker(test_world(), 0);
  walker.make(all_, [&](const Recipe& recipe) -> std::unique_ptr<Method> {
    if (recipe.name == "failing") return std::make_unique<FailingMethod>();
    return std::make_unique<AskedMethod>(recipe, found);
  });
  walker.go_in_waves_of(kMany);
  MemoryStore store;
  EXPECT_TRUE(walker.run(store, {1, 1}));
  EXPECT_EQ(contents(store, all_), expected());
  int passes = 0;
  for (const auto& each : found) passes += each.original_made ? 0 : 1;
  EXPECT_EQ(found.size(), 5u * kBlocks - 1) << "SignRound leaves out a block";
  EXPECT_EQ(passes, kBlocks) << "of the full-precision stream";
  // One wave of recipes with streams, one of those without.
  EXPECT_EQ(walker.blocks_read(), 2 * kBlocks);
}

// While a recipe is under way there is one, of its last block; afterwards there is none, and no folder.
TEST(ScheduleTest, SnapshotsGoWithTheirRecipe) {
  Communicator& world = test_world();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    const auto snapshots = [&](const Recipe& recipe) {
      return store.keys("recipes/" + recipe.name + "/activations");
    };
    std::size_t most = 0;
    const auto look = [&](JobMonitor&, int) {
      most = std::max(most, snapshots(recipes()[0]).size());
    };
    const auto take = [&](const Mesh&, const std::vector<std::size_t>& finished) {
      for (const std::size_t recipe : finished) EXPECT_TRUE(snapshots(recipes()[recipe]).empty());
      return true;
    };
    EXPECT_TRUE(Walker(world).run(store, shape, look, take));
    world.barrier();
    EXPECT_GT(world.all_reduce_max(static_cast<std::int64_t>(most)), 0);
    EXPECT_LE(most, 2u * kShards) << "that before goes when the next is there";
    for (const Recipe& recipe : recipes()) {
      EXPECT_TRUE(snapshots(recipe).empty());
      EXPECT_FALSE(
          std::filesystem::exists(folder.path() / "recipes" / recipe.name / "activations"));
    }
    EXPECT_TRUE(store.keys("activations").empty());
  }
}

TEST(ScheduleTest, SameBytesWithoutSnapshots) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed();
  MemoryStore store;
  EXPECT_TRUE(Walker(test_world(), 0).run(store, {1, 1}));
  EXPECT_EQ(contents(store), expected);
  EXPECT_EQ(store.writes(), 3 * kBlocks);
}

// A recipe is handed over when it is finished, before the team goes on to the next; to one team, which sees all of its blocks.
TEST(ScheduleTest, HandsOverEachRecipeAsItIsFinished) {
  Communicator& world = test_world();
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    std::vector<std::size_t> taken;  // by this rank's team
    bool leads = false;
    const auto take = [&](const Mesh& mesh, const std::vector<std::size_t>& finished) {
      leads = mesh.team().rank() == 0;
      for (const std::size_t recipe : finished) {
        taken.push_back(recipe);
        for (int block = 0; block < kBlocks; ++block) {
          EXPECT_TRUE(store.has(block_key(recipes()[recipe].name, block)));
        }
        if (shape.stages() == 1) {
          EXPECT_EQ(store.bytes(block_key(recipes()[recipe + 1].name, 0)), 0u)
              << "the next has begun";
        }
      }
      return true;
    };
    EXPECT_TRUE(Walker(world).run(store, shape, nullptr, take));
    if (shape.stages() == 1) {
      EXPECT_EQ(taken, (std::vector<std::size_t>{0, 1})) << "the last is for all ranks together";
    }
    std::array<std::int64_t, 3> times{};
    for (const std::size_t recipe : taken) times[recipe] += leads ? 1 : 0;
    for (const std::int64_t each : times) EXPECT_LE(world.all_reduce_sum(each), 1);
  }
}

// As at a stop while results are made: what is committed is a part of the whole, and the other stages do not wait for ever.
TEST(ScheduleTest, StopsWhereResultsStop) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    const bool done = walker.run(
        store, shape, nullptr,
        [&](const Mesh&, const std::vector<std::size_t>& ready) { return ready.empty(); });
    if (shape.stages() == 1) {
      EXPECT_FALSE(done);
    }
    world.barrier();
    EXPECT_TRUE(walker.run(store, shape));
    world.barrier();
    EXPECT_EQ(contents(store), expected);
  }
}

// One rank asks to stop after its second unit; all end, and what is committed is a part of the whole.
TEST(ScheduleTest, StopsTogetherAndGoesOn) {
  Communicator& world = test_world();
  const auto& expected = undisturbed();
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    (void)walker.run(store, shape, [&](JobMonitor& monitor, int units) {
      if (units == 2) monitor.watchdog().request_stop();
    });
    world.barrier();
    EXPECT_TRUE(walker.run(store, shape));
    world.barrier();
    EXPECT_EQ(contents(store), expected) << describe(shape);
  }
}

// Another store: something else happens before a block is written.
class HookedStore final : public PassingStore {
 public:
  HookedStore(RunStore& inner, std::function<void(int block)> before_block)
      : PassingStore(inner), before_block_(std::move(before_block)) {}
  void commit(const std::string& key, const Record& record) override {
    const std::size_t at = key.find("/block-");
    if (at != key.npos) before_block_(std::stoi(key.substr(at + 7)));
    PassingStore::commit(key, record);
  }

 private:
  std::function<void(int block)> before_block_;
};

// GPTQ; says which block it has begun.
class AnnouncedMethod final : public Method {
 public:
  explicit AnnouncedMethod(std::atomic<int>& begun) : begun_(begun) {}
  static Recipe recipe() { return recipes().front(); }
  Needs needs() const override { return gptq_->needs(); }
  std::vector<LinearScheme> schemes() const override { return gptq_->schemes(); }
  QuantizedBlock quantize(BlockTask& task) const override {
    begun_ = task.block;
    return gptq_->quantize(task);
  }

 private:
  std::atomic<int>& begun_;
  std::unique_ptr<Method> gptq_ = make_method(recipe());
};

// A rank's walk through one recipe without snapshots, on a store whose writing is held up.
class WriteBehindTest : public testing::Test {
 protected:
  WriteBehindTest() {
    walker_.make(AnnouncedMethod::recipe(),
                 [&] { return std::make_unique<AnnouncedMethod>(begun_); });
  }
  // Until this rank has begun with the block after `block`; false: it has not for so long that it waits for the writing.
  bool next_begins(int block, std::chrono::seconds patience = std::chrono::seconds(30)) const {
    const auto end = std::chrono::steady_clock::now() + patience;
    while (begun_ <= block && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return begun_ > block;
  }
  void finish_and_compare(const SharedFolder& folder) {
    Hdf5Store store(folder.path());
    EXPECT_TRUE(walker_.run(store, {1, world_.size()}));
    world_.barrier();
    auto expected = undisturbed();
    std::erase_if(expected, [](const auto& record) {
      return !record.first.starts_with("recipes/" + AnnouncedMethod::recipe().name + "/");
    });
    EXPECT_EQ(contents(store, {AnnouncedMethod::recipe()}), expected);
  }

  Communicator& world_ = test_world();
  Walker walker_{world_, 0};
  std::atomic<int> begun_ = -1;
};

TEST_F(WriteBehindTest, TheNextUnitIsMadeWhileARecordIsWritten) {
  for (int pipeline = 1; pipeline <= world_.size(); ++pipeline) {
    if (world_.size() % pipeline != 0) continue;
    const int data = world_.size() / pipeline;
    const int end = parts_of_rank(kBlocks, world_.rank() / data, pipeline).end;
    const SharedFolder folder(world_);
    Hdf5Store inner(folder.path());
    begun_ = -1;
    int written = 0;
    HookedStore store(inner, [&](int block) {
      ++written;
      EXPECT_TRUE(block + 1 == end || next_begins(block)) << "block " << block;
      EXPECT_EQ(block % data, world_.rank() % data) << "ranks of a team take turns";
    });
    EXPECT_TRUE(walker_.run(store, {pipeline, data}));
    EXPECT_EQ(walker_.units_told(), written);
    EXPECT_EQ(world_.all_reduce_sum(written), kBlocks);
    world_.barrier();
    finish_and_compare(folder);
  }
}

TEST_F(WriteBehindTest, AFailureIsThatOfAllRanksAndNoLaterBlockIsThere) {
  for (const int bad : {1, 2, kBlocks - 1}) {
    const SharedFolder folder(world_);
    Hdf5Store inner(folder.path());
    begun_ = -1;
    HookedStore store(inner, [&](int block) {
      if (block != bad) return;
      EXPECT_TRUE(bad + 1 == kBlocks || next_begins(bad)) << "block " << block;
      throw Error("cannot write it: no space is left");
    });
    std::string what;
    try {
      (void)walker_.run(store, {1, world_.size()});
    } catch (const Error& error) {
      what = error.what();
    }
    EXPECT_EQ(what, "cannot write it: no space is left");
    world_.barrier();
    for (int block = 0; block < kBlocks; ++block) {
      EXPECT_EQ(inner.has(block_key(AnnouncedMethod::recipe().name, block)), block < bad) << block;
    }
    world_.barrier();
    finish_and_compare(folder);
  }
}

// The wish comes while a record is written, and the writing takes longer than the way to the end.
TEST_F(WriteBehindTest, AStopWaitsForWhatIsBeingWritten) {
  // The first rank asks in its second turn, and there have to be blocks behind the one that is then under way.
  if (world_.size() + 2 >= kBlocks) GTEST_SKIP() << "fewer blocks than that";
  const SharedFolder folder(world_);
  Hdf5Store inner(folder.path());
  std::atomic<JobMonitor*> asked = nullptr;
  int written = 0;
  HookedStore store(inner, [&](int block) {
    ++written;
    if (asked == nullptr || world_.rank() != 0) return;  // the first decides
    asked.load()->watchdog().request_stop();
    (void)next_begins(block, std::chrono::seconds(1));
  });
  EXPECT_FALSE(
      walker_.run(store, {1, world_.size()}, [&](JobMonitor& monitor, int) { asked = &monitor; }));
  EXPECT_EQ(walker_.units_told(), written);
  world_.barrier();
  for (int block = 0; block <= begun_; ++block)
    EXPECT_TRUE(inner.has(block_key(AnnouncedMethod::recipe().name, block))) << block;
  EXPECT_LT(begun_, kBlocks - 1);
  world_.barrier();
  finish_and_compare(folder);
}

// A method that decides for the whole model: the bits of all linears, from what the ranks see of it together.
class Deciding final : public Method {
 public:
  explicit Deciding(int& decided) : decided_(decided) {}
  static Recipe recipe() {
    Recipe recipe;
    recipe.name = recipe.method = "deciding";
    recipe.options = nlohmann::json::object();
    recipe.needs = {.decision = true};
    recipe.schemes = {{.bits = 3}, {.bits = 4}};
    return recipe;
  }

  Needs needs() const override { return recipe().needs; }
  std::vector<LinearScheme> schemes() const override { return recipe().schemes; }
  nlohmann::json decide(ModelTask& task) const override {
    ++decided_;
    std::int64_t linears = 0;
    const PartRange mine = parts_of_rank(kBlocks, task.world.rank(), task.world.size());
    for (int block = mine.begin; block < mine.end; ++block) {
      const BlockWeights weights = task.decoder.load(task.model.checkpoint(), block, task.backend);
      linears += static_cast<std::int64_t>(weights.linears.size());
    }
    const auto all = task.world.all_reduce_sum(linears);
    return {{"linears", all}, {"bits", all == 7 * kBlocks ? 3 : 4}};
  }
  QuantizedBlock quantize(BlockTask& task) const override {
    const auto bits = task.decision.at("bits").get<int>();
    return make_method(parse_recipe({{"method", "rtn"}, {"bits", bits}}))->quantize(task);
  }

 private:
  int& decided_;
};

TEST(DecisionTest, IsMadeOnceByAllRanksAndHandedToEveryBlock) {
  Communicator& world = test_world();
  const std::vector<Recipe> made = {Deciding::recipe()};
  std::map<std::string, std::string> expected;
  {
    const auto alone = make_local_communicator();
    MemoryStore store;
    Walker walker(*alone);
    int decided = 0;
    walker.make(made[0], [&] { return std::make_unique<Deciding>(decided); });
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(decided, 1);
    expected = contents(store, made);
  }
  ASSERT_EQ(expected.size(), 1u + kBlocks);
  for (const MeshShape shape : meshes_of_one_lane(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    int decided = 0;
    walker.make(made[0], [&] { return std::make_unique<Deciding>(decided); });
    (void)walker.run(store, shape, [&](JobMonitor& monitor, int units) {
      if (units == 2) monitor.watchdog().request_stop();
    });
    world.barrier();
    EXPECT_TRUE(walker.run(store, shape));
    world.barrier();
    EXPECT_EQ(decided, 1) << "who resumes reads it";
    EXPECT_EQ(contents(store, made), expected) << describe(shape);
    for (int block = 0; block < kBlocks; ++block) {
      const auto attributes = store.attributes(block_key("deciding", block));
      ASSERT_TRUE(attributes);
      EXPECT_EQ(attributes->at("linears")[0].at("bits"), 3);
    }
  }
}

TEST(DecisionTest, IsMadeAgainOnlyWhereItIsMissingOrDamaged) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const std::vector<Recipe> made = {Deciding::recipe()};
  Walker walker(test_world());
  int decided = 0;
  walker.make(made[0], [&] { return std::make_unique<Deciding>(decided); });
  MemoryStore whole;
  EXPECT_TRUE(walker.run(whole, {1, 1}));
  const auto expected = contents(whole, made);

  for (int n = 1; n <= 1 + kBlocks; ++n) {
    decided = 0;
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(decided, n == 1 ? 2 : 1) << "after a failure at write " << n;
    EXPECT_EQ(contents(store, made), expected);
  }

  decided = 0;
  whole.damage(decision_key("deciding"));
  const int before = whole.writes();
  EXPECT_TRUE(walker.run(whole, {1, 1}));
  EXPECT_EQ(decided, 1);
  EXPECT_EQ(whole.writes(), before + 1) << "no block is made again";
  EXPECT_EQ(contents(whole, made), expected);
}

// Blocks that were made of another model than the decision do not mix with it.
TEST(DecisionTest, SaysWhatItWasMadeOf) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  Walker walker(test_world());
  int decided = 0;
  walker.make(Deciding::recipe(), [&] { return std::make_unique<Deciding>(decided); });
  MemoryStore store;
  EXPECT_TRUE(walker.run(store, {1, 1}));
  store.damage(block_key("deciding", 2));
  auto record = store.load(decision_key("deciding"));
  ASSERT_TRUE(record);
  nlohmann::json& made_of = record->attributes.at("made_of");
  const std::string tensor = "model.layers.4.mlp.up_proj.weight";
  ASSERT_TRUE(made_of.contains(tensor)) << "of every tensor of the model";
  made_of[tensor] = "another";
  store.commit(decision_key("deciding"), *record);
  EXPECT_THAT(
      [&] {
        (void)walker.run(store, {1, 1});
      },
      testing::ThrowsMessage<InputError>(testing::HasSubstr(tensor)));
}

// A decision that is made again may turn out otherwise, on another kind of device: blocks of both do not mix.
TEST(DecisionTest, BlocksOfAnotherDecisionAreRefused) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  Walker walker(test_world());
  int decided = 0;
  walker.make(Deciding::recipe(), [&] { return std::make_unique<Deciding>(decided); });
  MemoryStore store;
  EXPECT_TRUE(walker.run(store, {1, 1}));
  store.damage(block_key("deciding", 4));
  auto record = store.load(block_key("deciding", 2));
  ASSERT_TRUE(record);
  record->attributes["decided_as"] = "otherwise";
  store.commit(block_key("deciding", 2), *record);
  const auto refused = [&] {
    const int before = store.writes();
    EXPECT_THAT(
        [&] {
          (void)walker.run(store, {1, 1});
        },
        testing::ThrowsMessage<InputError>(testing::AllOf(testing::HasSubstr("recipes/deciding"),
                                                          testing::HasSubstr("another decision"),
                                                          testing::HasSubstr("remove"))));
    EXPECT_EQ(store.writes(), before);
  };
  refused();
  store.damage(decision_key("deciding"));  // it is decided anew, and then compared
  refused();
}

TEST(DecisionTest, WhatCannotBeDecidedNamesTheRecipe) {
  if (test_world().size() > 1) GTEST_SKIP() << "one rank says it all";
  struct Undecided final : Method {
    Needs needs() const override { return {.decision = true}; }
    std::vector<LinearScheme> schemes() const override { return {{}}; }
    QuantizedBlock quantize(BlockTask&) const override { return {}; }
  };
  Walker walker(test_world());
  walker.make(Deciding::recipe(), [] { return std::make_unique<Undecided>(); });
  MemoryStore store;
  EXPECT_THAT(
      [&] {
        (void)walker.run(store, {1, 1});
      },
      testing::ThrowsMessage<Error>(testing::StartsWith("deciding: ")));
}

}  // namespace
}  // namespace roundhouse
