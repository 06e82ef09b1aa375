// Recipes that are made of gradients: one walk serves all of them, and whatever the mesh, and wherever a run was cut off, what is
// committed has the same bytes.
#include "pipeline/schedule/gradient_recipes.h"

#include <cmath>
#include <map>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "pipeline/run/hdf5_store.h"
#include "pipeline/run/model_identity.h"
#include "pipeline/run/whole_records.h"
#include "stages/store/block_record.h"
#include "tests/base/temporary_folder.h"
#include "tests/comm/mpi_world.h"
#include "tests/comm/shared_folder.h"
#include "tests/model/model_files.h"
#include "tests/pipeline/schedule/meshes.h"
#include "tests/pipeline/schedule/narrow_model.h"
#include "tests/support/memory_store.h"

namespace roundhouse {
namespace {

constexpr int kBlocks = 6, kShards = 4, kLinears = 7;

Recipe squeezellm(const std::string& name, nlohmann::json options) {
  options["name"] = name;
  options["method"] = "squeezellm";
  options["gradients"] = {{"samples", 6}, {"sequence_length", 24}};
  return parse_recipe(options);
}

// Decides by statistics of the gradients: the largest sum of squares of any block.
class Deciding final : public Method {
 public:
  explicit Deciding(int& made) : made_(made) {}
  static Recipe recipe(const std::string& name) {
    Recipe recipe;
    recipe.method = "deciding";
    recipe.name = name;
    recipe.options = nlohmann::json::object();
    recipe.needs = {.gradients = Needs::Gradients{.samples = 6,
                                                  .sequence_length = 24,
                                                  .sums = {.sum = true},
                                                  .use = Needs::Gradients::Use::kStatistics},
                    .decision = true};
    recipe.schemes = {{.bits = 3}, {.bits = 4}};
    return recipe;
  }

  Needs needs() const override { return recipe("deciding").needs; }
  std::vector<LinearScheme> schemes() const override { return recipe("deciding").schemes; }
  nlohmann::json statistics(BlockTask& task) const override {
    ++made_;
    std::int64_t tiles = 0;
    for (const auto& of_linear : *task.gradients) {
      for (const BlockGradients::Tile& tile : of_linear) {
        EXPECT_EQ(tile.sum.cols, tile.sum.stride);
        ++tiles;
      }
    }
    return {{"block", task.block}, {"tiles", task.team.all_reduce_sum(tiles)}};
  }
  nlohmann::json decide(ModelTask& task) const override {
    EXPECT_EQ(task.statistics.size(), std::size_t{kBlocks});
    for (int block = 0; block < kBlocks; ++block) {
      EXPECT_EQ(task.statistics[block].at("block"), block);
    }
    return {{"tiles", task.statistics[0].at("tiles")}};
  }
  QuantizedBlock quantize(BlockTask& task) const override {
    EXPECT_EQ(task.gradients, nullptr);
    EXPECT_GT(task.decision.at("tiles").get<int>(), kLinears);
    return make_method(parse_recipe({{"method", "rtn"}, {"bits", 4}}))->quantize(task);
  }

 private:
  int& made_;
};

std::vector<Recipe> recipes() {
  return {squeezellm("squeezellm-w3", {{"bits", 3}}),
          parse_recipe({{"method", "rtn"}, {"bits", 3}}),
          squeezellm("squeezellm-w4-sparse", {{"bits", 4}, {"sparse", true}}),
          Deciding::recipe("one"), Deciding::recipe("two")};
}

class Walker {
 public:
  explicit Walker(Communicator& world, const std::filesystem::path& model = narrow_model())
      : world_(world), model_(model) {
    identity_.note_outside_blocks();
  }

  void make(const std::vector<Recipe>& recipes) { recipes_ = recipes; }

  // `order` gets what was made on this rank: units by recipe, and what was given to be exported as "finished RECIPE".
  bool run(RunStore& store, MeshShape shape,
           std::function<void(JobMonitor&, int)> on_unit = nullptr) {
    order.clear();
    const Meshes meshes(world_, shape, recipes_, kBlocks, *backend_);
    JobMonitor monitor(world_, nullptr, 60, 0);
    ActivationBudget budget(std::size_t{1} << 30, folder_.path());
    std::vector<RecipeState> states;
    for (const Recipe& recipe : recipes_) {
      states.push_back(inspect_recipe(recipe, kBlocks, kShards, store, world_));
    }
    int units = 0;
    Schedule schedule{.backend = *backend_,
                      .mesh = meshes.all,
                      .lane = meshes.own_lane(),
                      .model = model_,
                      .identity = identity_,
                      .decoder = *decoder_,
                      .samples = {},
                      .store = store,
                      .budget = budget,
                      .saved_activation_bytes = std::size_t{1} << 30,
                      .monitor = monitor,
                      .interruption_hours = 0,
                      .on_unit =
                          [&](const Recipe& recipe, const QuantizedBlock&, double) {
                            ++units;
                            order.push_back(recipe.name);
                            if (on_unit) on_unit(monitor, units);
                          },
                      .on_finished =
                          [&](const std::vector<std::size_t>& finished) {
                            for (const std::size_t r : finished)
                              order.push_back("finished " + recipes_[r].name);
                            return true;
                          },
                      .gradient_samples =
                          [&](const Needs::Gradients& gradients) {
                            ++walks;
                            EXPECT_EQ(gradients.samples, 6);
                            Random random(5);
                            std::vector<std::int32_t> ids(6 * 24);
                            for (std::int32_t& id : ids)
                              id = static_cast<std::int32_t>(random.below(1024));
                            return Samples(6, 24, kShards, ids);
                          },
                      .method_of = [this](const Recipe& recipe) -> std::unique_ptr<Method> {
                        if (recipe.method == "deciding")
                          return std::make_unique<Deciding>(statistics);
                        return make_method(recipe);
                      }};
    const bool finished = quantize_all(schedule, recipes_, states);
    failures.clear();
    for (std::size_t r = 0; r < states.size(); ++r)
      if (states[r].failure) failures.emplace(recipes_[r].name, *states[r].failure);
    return finished;
  }

  std::map<std::string, RecipeFailure> failures;  // of the last run, by recipe
  int walks = 0, statistics = 0;
  std::vector<std::string> order;
  const CausalLM& model() const { return model_; }
  Backend& backend() { return *backend_; }
  const DecoderBlock& decoder() const { return *decoder_; }

 private:
  Communicator& world_;
  TemporaryFolder folder_;
  CausalLM model_;
  NullMonitor quiet_;
  ModelIdentity identity_{model_, folder_.path(), world_, quiet_, true};
  std::vector<Recipe> recipes_ = recipes();
  std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_.config(), 24, *backend_);
};

std::map<std::string, std::string> contents(RunStore& store) {
  std::map<std::string, std::string> all;
  for (const Recipe& recipe : recipes()) {
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

struct Whole {
  MemoryStore store;
  std::map<std::string, std::string> contents;
};
Whole& undisturbed() {
  static Whole whole;
  if (whole.contents.empty()) {
    const auto alone = make_local_communicator();
    Walker walker(*alone);
    EXPECT_TRUE(walker.run(whole.store, {1, 1}));
    EXPECT_EQ(walker.walks, 1) << "one walk serves all";
    EXPECT_EQ(walker.statistics, kBlocks) << "those of two recipes that agree are made once";
    EXPECT_TRUE(whole.store.keys("gradients").empty()) << "no snapshot is left";
    whole.contents = contents(whole.store);
  }
  return whole;
}

TEST(GradientRecipesTest, SameBytesOnEveryMeshAndAfterAStop) {
  const auto& expected = undisturbed().contents;
  ASSERT_EQ(expected.size(), std::size_t{5 * kBlocks + 3});
  Communicator& world = test_world();
  for (const MeshShape shape : all_meshes(world.size(), kBlocks)) {
    const SharedFolder folder(world);
    Hdf5Store store(folder.path());
    Walker walker(world);
    EXPECT_FALSE(walker.run(store, shape, [&](JobMonitor& monitor, int units) {
      if (units == 2) monitor.watchdog().request_stop();
    }));
    world.barrier();
    EXPECT_TRUE(walker.run(store, shape));
    world.barrier();
    EXPECT_EQ(contents(store), expected) << describe(shape);
  }
}

// A model with something amiss in one matrix, in which a factor of outliers is looked for before anything else: no end of the run, on
// any number of ranks, of which one has read that matrix.
class NoOutliersTest : public testing::Test {
 protected:
  // The failures, by recipe.
  std::map<std::string, RecipeFailure> run(const std::function<float(std::size_t i)>& weight) {
    Communicator& world = test_world();
    const SharedFolder model(world), folder(world);
    if (world.rank() == 0) {
      const auto config = narrow_config();
      Tensors tensors = formula_tensors(config, DType::kF32);
      const auto values = tensors.at("model.layers.3.self_attn.o_proj.weight").as<float>();
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = weight(i);
      write_model(model.path(), config, tensors);
    }
    world.barrier();
    Hdf5Store store(folder.path());
    Walker walker(world, model.path());
    walker.make({recipes()[2], recipes()[1]});
    EXPECT_TRUE(walker.run(store, all_meshes(world.size(), kBlocks).back()));
    world.barrier();
    const auto failure = walker.failures.find("squeezellm-w4-sparse");
    if (failure == walker.failures.end()) {
      ADD_FAILURE() << "it was made";
    } else {
      EXPECT_EQ(failure->second.place(), "the whole model");
    }
    return walker.failures;
  }
};

TEST_F(NoOutliersTest, WhereAMatrixIsNearlyEmptyAndTheOtherRecipeIsMade) {
  const auto failures = run([](std::size_t i) { return i < 1000 ? 1.0f : 0.0f; });
  ASSERT_EQ(failures.size(), 1);
  EXPECT_THAT(failures.begin()->second.reason, testing::HasSubstr("16 times the distance"));
}

TEST_F(NoOutliersTest, WhereAThresholdIsBeyondFloat32) {
  const auto failures = run([](std::size_t i) { return i % 2 == 0 ? 3e38f : -3e38f; });
  EXPECT_THAT(failures.at("squeezellm-w4-sparse").reason,
              testing::HasSubstr("block 3, self_attn.o_proj: the threshold of its outliers"));
}

TEST(GradientRecipesTest, ResumesAfterAFailureAtAnyWriteAndWalksOnlyWhereItHasTo) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  const auto& expected = undisturbed().contents;
  Walker walker(test_world());
  // A decision and 12 blocks, 12 statistics and 5 x 4 snapshots of one walk, then 2 decisions and 18 blocks.
  for (int n = 1; n <= 65; n += 12) {
    MemoryStore store;
    store.fail_at_write(n);
    EXPECT_THROW(walker.run(store, {1, 1}), Error) << "write " << n;
    store.fail_at_write(0);
    EXPECT_TRUE(walker.run(store, {1, 1}));
    EXPECT_EQ(contents(store), expected) << "after a failure at write " << n;
  }
}

TEST(GradientRecipesTest, NothingIsWalkedWhereNothingIsMissing) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  Whole& whole = undisturbed();
  Walker walker(test_world());
  EXPECT_TRUE(walker.run(whole.store, {1, 1}));
  EXPECT_EQ(walker.walks, 0);
  EXPECT_EQ(contents(whole.store), whole.contents);

  // One block of one recipe: the statistics that are there are not made again, nor what nobody waits for.
  whole.store.damage(block_key("squeezellm-w3", 2));
  const int before = whole.store.writes();
  EXPECT_TRUE(walker.run(whole.store, {1, 1}));
  EXPECT_EQ(walker.walks, 1);
  EXPECT_EQ(walker.statistics, 0);
  // The block, and the gradients before blocks 3, 4 and 5.
  EXPECT_EQ(whole.store.writes() - before, 1 + 3 * kShards);
  EXPECT_EQ(contents(whole.store), whole.contents);
}

// What a walk has finished does not wait for the other recipes; each goes to one team.
TEST(GradientRecipesTest, RecipesOfAWalkAreGivenAwayBeforeOthersAreMade) {
  Communicator& world = test_world();
  const SharedFolder folder(world);
  Hdf5Store store(folder.path());
  Walker walker(world);
  EXPECT_TRUE(walker.run(store, {world.size(), 1}));
  int given = 0;
  for (const char* name : {"squeezellm-w3", "squeezellm-w4-sparse"}) {
    const auto at = std::ranges::find(walker.order, std::string("finished ") + name);
    if (at == walker.order.end()) continue;  // another stage's
    ++given;
    EXPECT_EQ(std::ranges::find(walker.order.begin(), at, "rtn-w3g128"), at)
        << name << " waits for a recipe that is no part of the walk";
  }
  EXPECT_EQ(world.all_reduce_sum(given), 2);
}

// A recipe that is added to a run has a walk of its own, which makes what it waits for and nothing else.
TEST(GradientRecipesTest, RecipesThatAreAddedLaterHaveAWalkOfTheirOwn) {
  const auto& expected = undisturbed().contents;
  Communicator& world = test_world();
  const SharedFolder folder(world);
  Hdf5Store store(folder.path());
  Walker walker(world);
  std::vector<Recipe> some = recipes();
  some.erase(some.begin() + 2);  // squeezellm-w4-sparse
  some.pop_back();               // "two"
  walker.make(some);
  EXPECT_TRUE(walker.run(store, {1, world.size()}));
  EXPECT_EQ(walker.walks, 1);
  walker.make(recipes());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const bool done = walker.run(store, {world.size(), 1});
  const std::string said =
      testing::internal::GetCapturedStdout() + testing::internal::GetCapturedStderr();
  EXPECT_TRUE(done);
  EXPECT_EQ(walker.walks, 2);
  if (world.rank() == 0) {
    EXPECT_THAT(said,
                testing::HasSubstr("gradients of 6 x 24 tokens: a walk through the model, for "
                                   "6 blocks of squeezellm-w4-sparse, two (squeezellm-w3, one "
                                   "had one before)"));
  }
  EXPECT_EQ(std::ranges::count(walker.order, "squeezellm-w3"), 0);
  world.barrier();
  EXPECT_EQ(contents(store), expected);
}

// What was made of gradients by another kind of device, or of another model, is seen before anything is made of it.
TEST(GradientRecipesTest, StatisticsSayWhatTheyWereMadeOfAndBy) {
  if (test_world().size() > 1) GTEST_SKIP() << "the store in memory is one rank's";
  Walker walker(test_world());
  MemoryStore store;
  EXPECT_TRUE(walker.run(store, {1, 1}));
  store.remove(decision_key("one"));
  const auto look = [&] {
    return inspect_recipe(Deciding::recipe("one"), kBlocks, kShards, store, test_world());
  };
  EXPECT_EQ(look().computed_by.size(), 1);
  const std::string key = statistics_key("one", 3);
  auto record = store.load(key);
  ASSERT_TRUE(record);
  record->attributes["computed_by"] = "another kind";
  store.commit(key, *record);
  EXPECT_TRUE(look().computed_by.contains("another kind"));
  record->attributes["made_of"]["model.layers.3.mlp.up_proj.weight"] = "another";
  store.commit(key, *record);
  EXPECT_THAT([&] { (void)look(); }, testing::ThrowsMessage<InputError>(
                                         testing::HasSubstr("model.layers.3.mlp.up_proj.weight")));
}

TEST(SqueezeLlmTest, KeepsWhatIsFarOutsideAndHasTheRestInTables) {
  if (test_world().size() > 1) GTEST_SKIP() << "one rank sees it all";
  MemoryStore store;
  Walker walker(test_world(), tiny_world());  // which has outliers
  walker.make({recipes()[0], recipes()[2]});
  ASSERT_TRUE(walker.run(store, {1, 1}));
  const auto decision = store.load(decision_key("squeezellm-w4-sparse"));
  ASSERT_TRUE(decision);
  const nlohmann::json& decided = decision->attributes.at("decision");
  std::int64_t weights = 0, large = 0, kept = 0, sensitive = 0;
  for (int block = 0; block < kBlocks; ++block) {
    const auto load = [&](const char* recipe) {
      return block_from_record(*store.load(block_key(recipe, block)), walker.decoder());
    };
    const QuantizedBlock sparse = load("squeezellm-w4-sparse"), dense = load("squeezellm-w3");
    const BlockWeights original =
        walker.decoder().load(walker.model().checkpoint(), block, walker.backend());
    for (std::size_t i = 0; i < sparse.linears.size(); ++i) {
      const QuantizedLinear& linear = sparse.linears[i];
      EXPECT_TRUE(linear.has_table());
      EXPECT_EQ(linear.bits, 4);
      EXPECT_FALSE(linear.sparse.empty());
      EXPECT_TRUE(dense.linears[i].has_table());
      EXPECT_EQ(dense.linears[i].bits, 3);
      EXPECT_TRUE(dense.linears[i].sparse.empty());
      EXPECT_GT(linear.record.at("error").get<double>(), 0);
      EXPECT_LT(linear.record.at("weighted_error").get<double>(),
                dense.linears[i].record.at("weighted_error").get<double>());

      const float from = decided.at("large_from")[block][i].get<float>();
      std::vector<float> w(static_cast<std::size_t>(linear.rows * linear.cols));
      walker.backend().download(original.linears[i].f32(), std::as_writable_bytes(std::span(w)));
      DequantizedRows rows(linear);
      const auto offsets = linear.sparse.offsets.as<std::int32_t>();
      const auto columns = linear.sparse.columns.as<std::int32_t>();
      for (std::int64_t row = 0; row < linear.rows; ++row) {
        const auto values = rows.values(row);
        const float* const of_row = w.data() + row * linear.cols;
        std::set<std::int32_t> beside;
        for (auto k = offsets[row]; k < offsets[static_cast<std::size_t>(row) + 1]; ++k) {
          const std::int32_t column = columns[k];
          beside.insert(column);
          const float value = of_row[column];
          // Half a unit in the last place of a float16, of what is added to the table's value.
          const float added = half_to_float(linear.sparse.values.as<std::uint16_t>()[k]);
          EXPECT_NEAR(values[column], value, std::abs(added) / 2048 + 1e-7f);
          ++kept;
          if (std::abs(value) < from) ++sensitive;
        }
        for (std::int32_t column = 0; column < linear.cols; ++column) {
          if (std::abs(of_row[column]) < from) continue;
          ++large;
          EXPECT_TRUE(beside.contains(column));
        }
      }
      weights += linear.rows * linear.cols;
    }
  }
  EXPECT_EQ(decided.at("weights"), weights);
  EXPECT_EQ(decided.at("outliers"), large);
  const double share = static_cast<double>(large) / static_cast<double>(weights);
  EXPECT_LE(share, 0.0040);
  EXPECT_GT(share, 0.0038) << "the factor is the one that fits";
  EXPECT_EQ(kept, large + sensitive);
  EXPECT_GT(sensitive, 0);
  EXPECT_LE(static_cast<double>(sensitive), 0.0005 * static_cast<double>(weights));
}

TEST(SqueezeLlmTest, NamesAndOptions) {
  const auto name = [](const nlohmann::json& object) { return parse_recipe(object).name; };
  EXPECT_EQ(name({{"method", "squeezellm"}, {"bits", 3}}), "squeezellm-w3");
  EXPECT_EQ(name({{"method", "squeezellm"}, {"sparse", true}}), "squeezellm-w4-sparse");
  EXPECT_EQ(name({{"method", "squeezellm"},
                  {"bits", 2},
                  {"exact", true},
                  {"sparse", {{"sensitive", 0.1}, {"outliers", 0.4}}}}),
            "squeezellm-w2-sparse-sensitive-0.1-exact");
  EXPECT_EQ(name({{"method", "squeezellm"}, {"gradients", {{"samples", 64}}}}),
            "squeezellm-w4-gradients-samples-64");

  const Recipe recipe = parse_recipe({{"method", "squeezellm"}, {"sparse", true}});
  EXPECT_EQ(parse_recipe(resolved(recipe)).options, recipe.options);
  EXPECT_EQ(recipe.needs.gradients->samples, 100);
  EXPECT_EQ(recipe.needs.gradients->sequence_length, 512);
  EXPECT_TRUE(recipe.needs.decision);
  EXPECT_FALSE(parse_recipe({{"method", "squeezellm"}}).needs.decision);
  EXPECT_FALSE(
      parse_recipe({{"method", "squeezellm"}, {"sparse", {{"outliers", 0}}}}).needs.decision);

  const auto error_of = [](const nlohmann::json& object) {
    try {
      (void)parse_recipe(object);
    } catch (const RecipeError& error) {
      return error.key + ": " + error.what;
    }
    return std::string("none");
  };
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"bits", 8}}), "bits: must be 2, 3 or 4");
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"group_size", 128}}),
            "group_size: is not an option of this method");
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"sparse", {{"large", 1}}}}),
            "sparse: large is not an option of this method");
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"sparse", 0.4}}),
            "sparse: must be a set of keys and values");
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"sparse", {{"sensitive", 0}, {"outliers", 0}}}}),
            "sparse: has nothing to keep: `sparse: false` is without a sparse part");
  EXPECT_EQ(error_of({{"method", "squeezellm"}, {"gradients", {{"samples", 0}}}}),
            "gradients: samples must be a whole number from 1 to 1000000");
}

}  // namespace
}  // namespace roundhouse
