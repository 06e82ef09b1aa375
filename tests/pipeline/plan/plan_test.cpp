// `roundhouse plan`: what it says beside what a run then takes, and what it refuses.
#include "pipeline/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "model/synthetic.h"
#include "pipeline/plan/evaluation_cost.h"
#include "pipeline/plan/mesh_choice.h"
#include "pipeline/plan/simulation.h"
#include "pipeline/schedule/planner.h"
#include "tests/base/temporary_folder.h"
#include "tests/pipeline/program.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

double bytes_below(const fs::path& folder) {
  double bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += static_cast<double>(entry.file_size());
  }
  return bytes;
}

class PlanTest : public testing::Test {
 protected:
  Outcome run(const std::string& arguments) const { return run_program(folder_.path(), arguments); }
  std::string refusal(const std::string& arguments) const {
    const Outcome outcome = run("plan " + arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    return outcome.err;
  }
  json planned(const std::string& arguments) const {
    const Outcome outcome = run("plan " + arguments + " --json");
    EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
    return json::parse(outcome.out);
  }
  // A program that is built with CUDA has its libraries in memory, 180 to 260 MiB, from start to start another part of them, also
  // where it computes on a CPU. No plan for a CPU counts these.
  bool has_cuda_libraries() const {
    return run("--version").out.find("with CUDA") != std::string::npos;
  }
  // Of the events of a kind in the run's journal, in MiB.
  double peak_memory(const std::string& kind) const {
    double peak = 0;
    std::ifstream journal(folder_.path() / "run" / "journal.jsonl");
    for (std::string line; std::getline(journal, line);) {
      const json event = json::parse(line);
      if (event.value("event", "") == kind)
        peak = std::max(peak, event["peak_memory_mib"].get<double>());
    }
    return peak;
  }
  TemporaryFolder folder_;
};

// On every method and format of the bundled model: what lies on the disk in the end, and the memory that it took. Of so many tokens
// that streams are most of it: what the program itself and oneDNN take differs by 10 MiB between processors.
TEST_F(PlanTest, DiskAndMemoryAreThoseOfTheRun) {
  const std::string settings =
      " configs/tiny-world.yaml --set run=" + (folder_.path() / "run").string() +
      " --set calibration.samples=32 --set calibration.sequence_length=256 --set threads=1"
      " --set device=cpu --set evaluate.perplexity=[] --set evaluate.original=false"
      " --set 'recipes=[{method: rtn}, {method: gptq, bits: 3}, "
      "{method: awq, bits: 4, grid_points: 2, overrides: [{match: \"*.down_proj\", bits: 8}, "
      "{match: model.layers.0.*, skip: true}]}, {method: signround, bits: 4, iterations: 2}]'";
  const json plan = planned(settings);
  ASSERT_EQ(run("run" + settings).exit_code, 0);

  const fs::path made = folder_.path() / "run";
  double records = 0;
  for (const json& recipe : plan["recipes"]) {
    const std::string name = recipe["name"];
    const double of_recipe = bytes_below(made / "recipes" / name);
    EXPECT_NEAR(6 * recipe["record_bytes"].get<double>() / of_recipe, 1, 0.02) << name;
    records += of_recipe;
    for (const auto& [format, bytes] : recipe["export_bytes"].items())
      EXPECT_NEAR(bytes.get<double>() / bytes_below(made / "export" / name / format), 1, 0.02)
          << name << " " << format;
  }
  EXPECT_NEAR(plan["disk"]["records"].get<double>() / records, 1, 0.02);

  if (!has_cuda_libraries()) {
    EXPECT_NEAR(plan["memory"]["host"].get<double>() / 0x1p20 / peak_memory("block"), 1, 0.10);
  }

  const json rest = planned(settings);
  EXPECT_EQ(rest["units"]["missing"], 0) << "what is there is done";
}

// Batches that wait to be evaluated are most of it.
TEST_F(PlanTest, MemoryOfEvaluationsIsThatOfTheRun) {
  if (has_cuda_libraries()) GTEST_SKIP() << "a program without CUDA's libraries tells";
  const std::string settings =
      " configs/tiny-world.yaml --set run=" + (folder_.path() / "run").string() +
      " --set threads=1 --set device=cpu --set evaluate.perplexity.0.limit=48 --set export={}"
      " --set 'recipes=[{method: rtn}]' --set evaluate.original=false --set evaluate.kl=true";
  const json memory = planned(settings)["memory"];
  ASSERT_EQ(run("run" + settings).exit_code, 0);
  EXPECT_NEAR(memory["host"].get<double>() / 0x1p20 / peak_memory("done"), 1, 0.10);
  EXPECT_LT(memory["units_host"], 0.5 * memory["host"].get<double>());
}

TEST_F(PlanTest, NeedsNoModelWhoseShapeIsKnown) {
  const json plan = planned("configs/llama-2-70b.yaml --ranks 32 --device h200");
  EXPECT_EQ(plan["model"]["blocks"], 80);
  EXPECT_EQ(plan["mesh"]["pipeline"], plan["best_mesh"]["pipeline"]);
  EXPECT_GT(plan["mesh"]["lanes"], 2) << "recipes of a sweep go side by side";
  EXPECT_EQ(plan["nodes"], 4);
  double parts = 0;
  for (const auto& [name, bytes] : plan["wire"].items())
    if (name != "all") parts += bytes.get<double>();
  EXPECT_DOUBLE_EQ(plan["wire"]["all"], parts);
  EXPECT_THAT(plan["sbatch"].get<std::string>(),
              testing::AllOf(HasSubstr("--nodes=4 --ntasks-per-node=8 --gpus-per-node=8 --time="),
                             HasSubstr("slurm/quantize_70b.sh")));
  const Outcome text = run("plan configs/llama-2-70b.yaml --ranks 32");
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("Reckoned, not measured"));
}

TEST_F(PlanTest, AModelFolderNeedsOnlyItsConfig) {
  const fs::path model = folder_.path() / "some model";
  fs::create_directories(model);
  fs::copy_file(source_folder() / "tests/data/tiny-world/config.json", model / "config.json");
  EXPECT_EQ(
      planned("configs/tiny-world.yaml --set 'model=" + model.string() + "'")["model"]["blocks"],
      6);
}

TEST_F(PlanTest, WhatIsWrongIsSaidInOneLine) {
  EXPECT_THAT(refusal("configs/tiny-world.yaml --device v100"), HasSubstr("v100"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --ranks 0"), HasSubstr("--ranks"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --ranks -3"), HasSubstr("--ranks"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --ranks 7 --set mesh.pipeline=7"),
              HasSubstr("more pipeline stages"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --ranks 6 --set mesh.data=4"),
              HasSubstr("does not fit 6 ranks"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --set model=/nowhere/mystery"),
              testing::AllOf(HasSubstr("/nowhere/mystery/config.json"), HasSubstr("--like")));
  EXPECT_THAT(refusal("configs/none.yaml"), HasSubstr("configs/none.yaml"));
  EXPECT_THAT(refusal("configs/tiny-world.yaml --rates nowhere.json"), HasSubstr("nowhere.json"));

  const fs::path rates = folder_.path() / "rates.json";
  const auto with = [&](const std::string& text) {
    std::ofstream(rates) << text;
    return refusal("configs/tiny-world.yaml --rates " + rates.string());
  };
  EXPECT_THAT(with("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(with("{"), HasSubstr("rates.json"));
  EXPECT_THAT(with(R"({"like": "cpu", "matmul": -1})"),
              HasSubstr("matmul: must be a number above 0"));
  EXPECT_THAT(with(R"({"like": "cpu", "matmull": 1})"), HasSubstr("matmull"));
  EXPECT_THAT(with(R"({"matmul": 1e12})"), HasSubstr("is missing"));
  EXPECT_THAT(with(R"({"like": "tpu"})"), HasSubstr("tpu"));
  EXPECT_THAT(with(R"({"like": "cpu", "phases": {"forward": 0}})"), HasSubstr("phases.forward"));
}

TEST_F(PlanTest, SaysWhatDoesNotFitAndWhatWould) {
  const std::string config = "configs/llama-2-70b.yaml --like llama-2-70b --device h200 --ranks 8";
  const auto problems = [&](const std::string& more) {
    return planned(config + more)["problems"].dump();
  };
  EXPECT_THAT(problems(" --set memory.activations_gib=4"),
              testing::AllOf(HasSubstr("memory.activations_gib is 4"), HasSubstr("holds them")));
  EXPECT_THAT(problems(" --set calibration.sequence_length=8192"),
              HasSubstr("calibration.sequence_length: 8192"));
  EXPECT_THAT(problems(" --set limits.minutes=1"), HasSubstr("limits.minutes"));
  std::ofstream(folder_.path() / "small.json") << R"({"like": "h200", "device_bytes": 5e9})";
  EXPECT_THAT(planned("configs/llama-2-70b.yaml --ranks 8 --rates " +
                      (folder_.path() / "small.json").string())["problems"]
                  .dump(),
              HasSubstr("of device memory, and small has 5.0"));
}

TEST_F(PlanTest, ReckonsByTheProductsOfThePrecision) {
  const auto seconds = [&](const std::string& more) {
    return planned("configs/tiny-world.yaml --set device=cpu" + more)["seconds"].get<double>();
  };
  const double bf16 = seconds(" --set cpu_precision=bf16");
  EXPECT_LT(bf16, 0.9 * seconds(""));
  EXPECT_EQ(bf16, seconds(" --set cpu_precision=bf16 --device cpu"));
  EXPECT_EQ(bf16, seconds(" --device cpu-bf16"));

  const std::string rates = (folder_.path() / "rates.json").string();
  (void)planned("configs/tiny-world.yaml --device cpu --write-rates " + rates);
  const auto hints = [&](const std::string& more) {
    return planned("configs/tiny-world.yaml --rates " + rates + more)["hints"].dump();
  };
  EXPECT_THAT(hints(" --set cpu_precision=bf16"),
              HasSubstr("cpu_precision is bf16, and cpu has the rates of f32"));
  EXPECT_THAT(hints(""), testing::Not(HasSubstr("cpu_precision")));
}

// A device on which nothing but making a unit takes time, 1 s.
DeviceRates second_a_unit() {
  DeviceRates rates = rates_of_device("cpu");
  for (double DeviceRates::*rate :
       {&DeviceRates::matmul, &DeviceRates::f32, &DeviceRates::attention, &DeviceRates::round,
        &DeviceRates::pack, &DeviceRates::commit, &DeviceRates::load, &DeviceRates::team_link,
        &DeviceRates::node_link, &DeviceRates::host_message, &DeviceRates::file_read,
        &DeviceRates::file_write, &DeviceRates::file_system}) {
    rates.*rate = 1e30;
  }
  rates.message_seconds = 0;
  rates.unit_seconds = 1;
  rates.host_bytes = 1e15;
  return rates;
}

class SimulationTest : public testing::Test {
 protected:
  SimulationTest() {
    config_.evaluate_original = false;
    config_.interruption_hours = 0;
    for (int bits : {2, 3, 4, 8})
      config_.recipes.push_back(parse_recipe({{"method", "gptq"}, {"bits", bits}}));
  }
  double seconds(int stages) const {
    return simulate_job(request_, stages, {stages, 1}, states()).simulation.seconds;
  }
  MeshShape chosen(int ranks) const { return choose_mesh(request_, ranks, states()).mesh; }
  std::vector<RecipeState> states() const { return fresh_states(config_.recipes, blocks_); }

  RunConfig config_;
  const ModelConfig model_ = shape_like("llama-1.1b");
  const int blocks_ = static_cast<int>(model_.blocks);
  const std::unique_ptr<Backend> backend_ = make_backend("cpu", {.threads = 1});
  const std::unique_ptr<DecoderBlock> decoder_ = make_decoder_block(model_, 2048, *backend_);
  DeviceRates rates_ = second_a_unit();
  const PlanRequest request_{config_, model_, *decoder_, rates_};
};

TEST(CostModelTest, MethodsCostWhatTheyCompute) {
  RunConfig config;
  config.calibration.samples = 128;
  config.calibration.sequence_length = 2048;
  for (const char* method : {"rtn", "gptq", "squeezellm", "signround"})
    config.recipes.push_back(parse_recipe({{"method", method}}));
  const ModelConfig model = shape_like("llama-2-7b");
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = make_decoder_block(model, 2048, *backend);
  const DeviceRates rates = rates_of_device("cpu");
  const CostModel costs({config, model, *decoder, rates, 1, {}});
  const auto all = [&](std::size_t r) { return costs.make(r).seconds(); };
  EXPECT_GT(all(0), 0);
  EXPECT_GT(all(1), 5 * all(0));
  EXPECT_GT(costs.make(2).phases["solve"], 50 * costs.make(0).phases["solve"])
      << "sorting, and k-means in each row";
  EXPECT_GT(all(3), 5 * all(1));
}

TEST_F(SimulationTest, APipelineIsFilledByRecipes) {
  EXPECT_NEAR(seconds(1), 4 * blocks_, 1e-3);
  EXPECT_NEAR(seconds(2), (4 + 1) * blocks_ / 2.0, 1e-3) << "J + P - 1 turns of a stage's blocks";
  EXPECT_NEAR(seconds(11), (4 + 10) * blocks_ / 11.0, 1e-3);
}

TEST_F(SimulationTest, AWaveLoadsABlockOnce) {
  const double block = simulate_job(request_, 1, {1, 1}, states()).costs.block_bytes();
  rates_.load = block;  // a second
  const auto of = [&](int most) { return simulate_job(request_, 1, {1, 1}, states(), most); };
  EXPECT_NEAR(of(1).simulation.seconds, 4 * 2 * blocks_, 1e-3);
  EXPECT_NEAR(of(2).simulation.seconds, (4 + 2) * blocks_, 1e-3);
  EXPECT_NEAR(of(8).simulation.seconds, (4 + 1) * blocks_, 1e-3);
  const MeshChoice chosen = choose_mesh(request_, 1, states());
  EXPECT_EQ(chosen.most, 4) << "the least of the fastest";
  EXPECT_EQ(chosen.waves, (std::vector<Wave>{{0, 1, 2, 3}}));
  // Two fit.
  const MemoryUse two = of(1).costs.memory({0, 1});
  rates_.host_bytes = 1.01 * std::max(two.host / 0.95, 2 * two.activations);
  EXPECT_EQ(choose_mesh(request_, 1, states()).waves, (std::vector<Wave>{{0, 1}, {2, 3}}));
  config_.wave = 1;
  EXPECT_EQ(choose_mesh(request_, 1, states()).waves, (std::vector<Wave>{{0}, {1}, {2}, {3}}));
}

// On devices its ranks read a part each and tell it to the others; on CPUs each reads all.
TEST_F(SimulationTest, ATeamOfDevicesLoadsABlockInParts) {
  rates_.ranks_a_node = 2;
  const double block = simulate_job(request_, 4, {1, 4}, states()).costs.block_bytes();
  rates_.load = block;  // a second
  const Step make{Step::Kind::kMake, 0, 0, 0, /*loads=*/true};
  const auto of = [&](bool is_host) {
    rates_.is_host = is_host;
    return simulate_job(request_, 4, {1, 4}, states());
  };
  const SimulatedJob hosts = of(true);
  EXPECT_NEAR(hosts.costs.make(make).phases.at("load"), 1, 1e-9);
  EXPECT_EQ(hosts.costs.load_sent(make), 0);
  EXPECT_EQ(hosts.costs.block_bytes_read(), 2 * block) << "by each of two nodes";
  const SimulatedJob devices = of(false);
  EXPECT_NEAR(devices.costs.make(make).phases.at("load"), 0.25, 0.02) << "in whole pieces";
  const LoadTraffic traffic = load_traffic(decoder_->linears(), 4, 2);
  EXPECT_EQ(devices.costs.load_sent(make), traffic.sent);
  EXPECT_EQ(devices.costs.load_sent({Step::Kind::kMake, 0, 0, 0, /*loads=*/false}), 0);
  EXPECT_NEAR(devices.costs.block_bytes_read(), block, 1e-3 * block) << "of norms twice";
  const auto messages = [&] { return of(false).costs.make(make).phases.at("messages"); };
  const double fast = messages();
  rates_.team_link = rates_.node_link = traffic.received;  // a second
  EXPECT_GT(messages() - fast, 1);
}

// What one recipe of a wave has made of a block the others do not make again.
TEST_F(SimulationTest, AWavePassesAndGathersOnce) {
  config_.recipes.clear();
  for (const int bits : {3, 4}) {
    config_.recipes.push_back(parse_recipe({{"method", "awq"}, {"bits", bits}}));
    config_.recipes.push_back(parse_recipe({{"method", "signround"}, {"bits", bits}}));
  }
  const SimulatedJob job = simulate_job(request_, 1, {1, 1}, states(), 8);
  ASSERT_EQ(job.waves, (std::vector<Wave>{{0, 2, 1, 3}})) << "those of a method are neighbours";
  std::vector<Step> made;
  std::ranges::copy_if(job.steps[0], std::back_inserter(made), [](const Step& step) {
    return step.kind == Step::Kind::kMake && step.block == 1;
  });
  ASSERT_EQ(made.size(), 4u);
  for (std::size_t i = 0; i < made.size(); ++i) {
    EXPECT_EQ(made[i].loads, i == 0);
    EXPECT_EQ(made[i].original, i == 0);
    EXPECT_EQ(made[i].gathered, i == 1);
  }
  const auto phases = [&](std::size_t i) { return job.costs.make(made[i]).phases; };
  EXPECT_GT(phases(0).at("gram"), 0);
  EXPECT_FALSE(phases(1).contains("gram"));
  EXPECT_LT(phases(1).at("forward"), 0.6 * phases(0).at("forward"));
  EXPECT_FALSE(phases(2).contains("target"));
  EXPECT_TRUE(job.costs.make(1).phases.contains("target")) << "alone";
}

TEST_F(SimulationTest, TheMeshIsTheFastestThatFits) {
  EXPECT_EQ(chosen(2), (MeshShape{1, 1, 2})) << "two recipes at a time, and no pipeline to fill";
  rates_.ranks_a_node = 2;
  const MemoryUse of_wide = simulate_job(request_, 2, {1, 2}, states()).costs.memory({0});
  rates_.host_bytes = 2.02 * std::max(of_wide.host / 0.95, 2 * of_wide.activations);
  EXPECT_EQ(chosen(2), (MeshShape{1, 2})) << "a rank of the others would hold all streams";
  rates_.host_bytes = 1e6;
  EXPECT_EQ(chosen(2), (MeshShape{1, 1, 2})) << "none fits";
  rates_.host_bytes = 1e15;
  config_.lanes = 1;
  EXPECT_EQ(chosen(2), (MeshShape{2, 1}));
  config_.lanes = 2;
  EXPECT_EQ(chosen(4), (MeshShape{2, 1, 2}));
  config_.lanes = 3;
  EXPECT_THROW(chosen(4), InputError);
  config_.lanes = 0;
  config_.recipes.resize(1);
  EXPECT_EQ(chosen(2), (MeshShape{1, 2})) << "one recipe is in one stage at a time";
  EXPECT_EQ(chosen(23), (MeshShape{1, 23})) << "more stages than blocks";
  config_.pipeline_ranks = 2;
  EXPECT_EQ(chosen(2), (MeshShape{2, 1})) << "as it was asked for";
  EXPECT_THROW(chosen(3), InputError);
}

TEST_F(SimulationTest, EvaluationIsSharedAsIsFastest) {
  const EvaluationSize size{.tokens = 40 * 2048.0, .works = 2};
  const auto site = [&](int ranks, double activation_bytes = 1e12) {
    return EvaluationSite{model_, *decoder_, rates_, ranks, activation_bytes, 1e11};
  };
  // 22 blocks: of a ring of 4 two ranks have a block more than the others; of two rings of 2 all have 11.
  rates_.matmul = 1e12;
  EXPECT_EQ(best_evaluation(site(4), size).shape.rings, 2);
  EXPECT_EQ(best_evaluation(site(44), size).shape.rings, 40) << "there are 40 batches";
  // Each rank of each ring that reads a block costs.
  rates_.load = 1e6;
  EvaluationCost cost = best_evaluation(site(4), size);
  EXPECT_EQ(cost.shape, (WalkShape{1, 1}));
  EXPECT_EQ(cost.reads, 1);
  EXPECT_EQ(cost.messages, 40 * (21 + 3.0 / 4)) << "to the next stage, and to another rank's head";
  EXPECT_EQ(cost.sent, cost.messages * 2048 * 2048 * 4);
  EXPECT_EQ(best_evaluation(site(44), size).shape.rings, 2) << "a rank has a block at least";
  // Where activations do not fit: of these four batches at a time.
  EXPECT_EQ(evaluation_cost(site(4, 4 * 2048 * 2048 * 4.0), size, 1).reads, 10);
  // A device takes as many blocks as half of its memory holds: then each rank has one stage, and few messages.
  rates_.is_host = false;
  cost = evaluation_cost(site(4), size, 1);
  EXPECT_EQ(cost.shape.blocks_at_once, 22);
  EXPECT_EQ(cost.messages, 40 * (3 + 3.0 / 4));
  // A comparison walks the original, too.
  EXPECT_GT(evaluation_cost(site(4), {.tokens = 81920, .compared = 81920}, 1).seconds,
            1.9 * cost.seconds);
}

}  // namespace
}  // namespace roundhouse
