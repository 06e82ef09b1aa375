// Quantizes whole blocks, as a run does, and prints for each part of the work its seconds beside its
// floor: the seconds that its floating-point operations take at the rate that this machine was measured to multiply matrices
// at (16-bit inputs for what works on activations, F32 for factorizations and solving; on a CPU both are F32).
//
//   block_bench [--like llama-1.1b | --model DIR] [--blocks 2] [--samples 32] [--length 512] [--threads N] [--recipe JSON]
//               [--json FILE]      the first blocks of a model directory, or of a synthetic model of a published shape
//   block_bench --recipe '{"method": "signround", "iterations": 5}' --blocks 1
//   block_bench --gradients --like llama-2-70b --blocks 1 --samples 4
//                                  the gradients of the loss, from so many blocks up to the head, in place of a recipe
//   block_bench --recipe '{"method": "squeezellm"}' --blocks 1 --samples 4
//                                  the same, and what the recipe makes of them; then its blocks, where they are not made of them
//   block_bench --like llama-2-70b --samples 512 --length 2048 --floors 790,50,55     the floors alone, for a machine
//                                  elsewhere: TFLOP/s with 16-bit inputs, in F32, GB/s from host to device; runs nothing. With
//                                  --gradients those of the walk through the whole model
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "kernels/host_threads.h"
#include "model/causal_lm.h"
#include "model/synthetic.h"
#include "pipeline/run/hdf5_store.h"
#include "stages/flow/last_fact.h"
#include "stages/flow/micro_batch.h"
#include "stages/quantize/methods.h"
#include "stages/sensitivity/gradient_walk.h"
#include "stages/store/block_record.h"
#include "tests/bench/random_tensor.h"

namespace roundhouse {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Of this process, all threads: on a machine that others use, too, less depends on them than seconds do.
double cpu_now() {
  std::timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// What the machine can do, measured or given.
struct Rates {
  double activations;         // FLOP/s of products with inputs of the activation type
  double f32;                 // FLOP/s of products in F32
  double host_to_device = 0;  // bytes/s; 0: the host's memory is the device's
};

double upload_rate(Backend& backend) {
  if (backend.is_host_memory()) return 0;
  constexpr std::size_t kBytes = std::size_t{256} << 20;
  ActivationBudget budget(2 * kBytes, std::filesystem::temp_directory_path(), &backend);
  Activations pinned(budget, DType::kU8, 1 << 20);
  pinned.reserve(0, kBytes >> 20);
  double best = 1e30;
  for (int i = 0; i < 4; ++i) {
    const double start = now();
    const Tensor rows = pinned.load(0, 0, kBytes >> 20, backend);
    backend.sync();
    if (i > 0) best = std::min(best, now() - start);
  }
  return static_cast<double>(kBytes) / best;
}

struct Options {
  std::string like = "llama-1.1b", model, recipe = R"({"method": "gptq"})", json;
  std::vector<double> floors;
  int blocks = 2, samples = 32, length = 512, threads = 0;
  bool gradients = false;
};

Recipe recipe_of(const Options& options) {
  try {
    return parse_recipe(nlohmann::json::parse(options.recipe));
  } catch (const RecipeError& error) {
    throw InputError("--recipe: " + error.key + (error.key.empty() ? "" : ": ") + error.what);
  }
}

double weights_of(const DecoderBlock& decoder, std::span<const int> linears) {
  double sum = 0;
  for (const int i : linears) {
    const LinearSpec& spec = decoder.linears()[i];
    sum += static_cast<double>(spec.rows * spec.cols);
  }
  return sum;
}

// Of a walk through a whole model's gradients, by phase: products of linears and of the head, two operations a weight and token.
// A block goes forward twice; back, there is a product for what is within and one for the weights, but nobody asks for the gradient
// of what the first block's attention starts from.
std::map<std::string, double> walk_flops(const ModelConfig& config, const DecoderBlock& decoder,
                                         const Options& options) {
  const double of_a_weight = 2.0 * options.samples * options.length;
  const auto blocks = static_cast<double>(config.blocks);
  double weights = 0;
  for (const SharedInput& group : decoder.shared_inputs())
    weights += weights_of(decoder, group.linears);
  const double head = static_cast<double>(config.vocabulary * config.embedding_size);
  return {
      {"forward", of_a_weight * blocks * weights},
      {"loss", of_a_weight * 2 * head},
      {"backward", of_a_weight * (3 * blocks * weights -
                                  weights_of(decoder, decoder.shared_inputs().front().linears))}};
}

void print_phase(const std::string& phase, double flops, double rate) {
  std::printf("  %-10s %10.1f TFLOP at %6.1f TFLOP/s %8.2f s\n", phase.c_str(), flops / 1e12,
              rate / 1e12, flops / rate);
}

void print_walk_floors(const Options& options, const Rates& rates, Backend& backend) {
  const ModelConfig config = shape_like(options.like);
  const auto decoder = make_decoder_block(config, 1, backend);
  std::printf("%s, gradients, %d x %d tokens, %lld blocks on one device\n", options.like.c_str(),
              options.samples, options.length, static_cast<long long>(config.blocks));
  double total = 0;
  for (const auto& [phase, flops] : walk_flops(config, *decoder, options)) {
    print_phase(phase, flops, rates.activations);
    total += flops;
  }
  print_phase("together", total, rates.activations);
  std::int64_t rows = 0;
  double weights = 0;
  for (const LinearSpec& spec : decoder->linears()) {
    rows += spec.rows;
    weights += static_cast<double>(spec.rows * spec.cols);
  }
  std::printf("  and of each block k-means of %lld rows of %.1f million weights\n",
              static_cast<long long>(rows), weights / 1e6);
}

void print_floors(const Options& options) {
  const Rates rates{options.floors.at(0) * 1e12, options.floors.at(1) * 1e12,
                    options.floors.at(2) * 1e9};
  const auto backend = make_backend("cpu", {.threads = 1});
  if (options.gradients) return print_walk_floors(options, rates, *backend);
  const auto decoder = make_decoder_block(shape_like(options.like), 1, *backend);
  const Recipe recipe = recipe_of(options);
  const BlockCost cost =
      make_method(recipe)->cost(*decoder, options.samples, options.length, DType::kBF16);
  std::printf("%s, %s, %d x %d tokens, one block on one device\n", options.like.c_str(),
              recipe.name.c_str(), options.samples, options.length);
  double total = 0;
  for (const auto& [phase, flops] : cost.flops) {
    const double rate = works_in_f32(phase) ? rates.f32 : rates.activations;
    print_phase(phase, flops, rate);
    total += flops / rate;
  }
  std::printf("  %-50s %6.2f s\n", "together", total);
  std::printf(
      "  %-10s %10.1f GB to and %.1f GB from the device at %.0f GB/s %6.2f s, beside the rest\n",
      "copies", cost.bytes_up / 1e9, cost.bytes_down / 1e9, rates.host_to_device / 1e9,
      std::max(cost.bytes_up, cost.bytes_down) / rates.host_to_device);
}

// A folder of this process, gone with it.
class Scratch {
 public:
  Scratch() { std::filesystem::create_directories(path_); }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("roundhouse-bench-" + std::to_string(getpid()));
};

std::filesystem::path synthesize(const Options& options, const std::filesystem::path& folder) {
  SyntheticOptions synthetic;
  synthetic.config = shape_like(options.like);
  synthetic.config.blocks = options.blocks;
  write_synthetic_model(synthetic, folder / "model");
  return folder / "model";
}

Samples random_samples(const Options& options, std::int64_t vocabulary) {
  Random random(1);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(options.samples) *
                                static_cast<std::size_t>(options.length));
  for (std::int32_t& id : ids)
    id = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary)));
  return Samples(options.samples, options.length, std::min(16, options.samples), ids);
}

Activations embed(const CausalLM& model, const Samples& samples, ActivationBudget& budget,
                  Backend& backend) {
  Activations stream(budget, backend.activation_type(), model.config().hidden_size);
  for (int shard = 0; shard < samples.shards(); ++shard) {
    const PartRange range = samples.samples_of_shard(shard);
    stream.reserve(shard, (range.end - range.begin) * samples.length());
    for (const MicroBatch& batch : micro_batches_of_shard(samples, shard)) {
      const Tensor rows =
          model.embed(samples.ids(batch.first_sample, batch.sequences), samples.length(), backend);
      stream.store(shard, batch.first_row, rows.view(), backend);
    }
  }
  return stream;
}

// The seconds of one block beside their floors, printed and kept.
class BlockTable {
 public:
  BlockTable(const std::string& what, const Rates& rates) : rates_(rates) {
    std::printf("%-18s seconds     floor   share     GFLOP\n", what.c_str());
  }
  void add_seconds(const std::string& part, double seconds, double of_cpu) {
    add(part, seconds, 0, 0, of_cpu);
  }
  void add_phase(const std::string& phase, double seconds, double flops) {
    const double floor = floor_of(phase, flops);
    add(phase, seconds, flops, floor);
    flops_ += flops;
    floor_ += floor;
  }
  void add_step(double seconds, double flops) {
    add("one step", seconds, flops, floor_of("forward", flops));
  }
  void finish(const std::string& whole, double seconds) { add(whole, seconds, flops_, floor_); }
  const nlohmann::json& facts() const { return facts_; }

 private:
  double floor_of(const std::string& phase, double flops) const {
    return flops / (works_in_f32(phase) ? rates_.f32 : rates_.activations);
  }
  void add(const std::string& part, double seconds, double flops, double floor, double of_cpu = 0) {
    nlohmann::json& kept = facts_["parts"][part] = {{"seconds", seconds}};
    std::printf("  %-14s %9.3f", part.c_str(), seconds);
    if (flops > 0) {
      std::printf(" %9.3f %5.1f %% %9.1f", floor, 100 * floor / seconds, flops / 1e9);
      kept["flops"] = flops;
      kept["floor_seconds"] = floor;
    }
    if (of_cpu > 0) {
      std::printf("   %.3f of CPU", of_cpu);
      kept["cpu_seconds"] = of_cpu;
    }
    std::printf("\n");
  }

  Rates rates_;
  nlohmann::json facts_;
  double flops_ = 0, floor_ = 0;
};

// The parts that the method measured; throws Error where it counts other operations than block_cost.cpp.
void add_phases(BlockTable& table, const nlohmann::json& record, const BlockCost& cost) {
  const nlohmann::json& counted = record["flops"];
  for (const auto& [phase, seconds] : record["phases"].items())
    table.add_phase(phase, seconds.get<double>(), counted.value(phase, 0.0));
  for (const auto& [phase, flops] : cost.flops) {
    if (std::abs(counted.value(phase, 0.0) - flops) > 1e-9 * flops)
      throw Error("block_cost.cpp and the method disagree about " + phase);
  }
  if (!record.contains("iterations")) return;
  const double steps = record["iterations"];
  double seconds = 0, flops = 0;
  for (const char* phase : {"fetch", "round", "forward", "backward", "keep", "step"}) {
    seconds += record["phases"].value(phase, 0.0);
    flops += counted.value(phase, 0.0);
  }
  table.add_step(seconds / steps, flops / steps);
}

// What a recipe makes of a block's gradients, and how long that takes.
class GradientUse {
 public:
  GradientUse(const Recipe& recipe, const Method& method, const nlohmann::json& decision,
              RunStore& store)
      : recipe_(recipe), method_(method), decision_(decision), store_(store) {}

  void take(const BlockSite& site, BlockWeights& weights, const CausalLM& model,
            ActivationBudget& budget, const SummedGradients& sums) {
    const double start = now();
    BlockTask task{site,
                   model.checkpoint(),
                   weights,
                   nullptr,
                   nullptr,
                   budget,
                   site.backend.available_bytes() / 4,
                   decision_,
                   &sums};
    if (recipe_.needs.makes_blocks_of_gradients()) {
      store_.commit(block_key(recipe_.name, site.block), to_record(method_.quantize(task)));
    } else {
      statistics_.insert(statistics_.begin(), method_.statistics(task));  // from the last block on
    }
    site.backend.sync();
    seconds_ += now() - start;
    for (const LinearSpec& spec : site.decoder.linears()) {
      rows_ += spec.rows;
      weights_ += static_cast<double>(spec.rows * spec.cols);
    }
  }
  const std::vector<nlohmann::json>& statistics() const { return statistics_; }
  void print() const {
    std::printf("  %s: of `take`, %.3f s for %lld rows, %.1f million weights: %.0f rows/s\n",
                recipe_.name.c_str(), seconds_, static_cast<long long>(rows_), weights_ / 1e6,
                static_cast<double>(rows_) / seconds_);
  }

 private:
  const Recipe& recipe_;
  const Method& method_;
  const nlohmann::json& decision_;
  RunStore& store_;
  std::vector<nlohmann::json> statistics_;
  double seconds_ = 0, weights_ = 0;
  std::int64_t rows_ = 0;
};

// From the first block of the model to its head, and back: what of a whole model's walk grows with its blocks, and the loss.
// `use`: nullptr for the walk alone.
nlohmann::json run_gradients(const Options& options, const CausalLM& model,
                             const DecoderBlock& decoder, Communicator& team,
                             ActivationBudget& budget, const Rates& rates, GradientSums wanted,
                             GradientUse* use, Backend& backend) {
  const Samples samples = random_samples(options, model.config().vocabulary);
  LastFact monitor;
  const double start = now();
  walk_gradients(
      {.backend = backend,
       .team = team,
       .device_team = team,
       .model = model,
       .decoder = decoder,
       .samples = samples,
       .budget = budget,
       .saved_activation_bytes = backend.available_bytes() / 4,
       .monitor = monitor,
       .wanted = wanted,
       .blocks = {0, static_cast<int>(model.config().blocks)},
       .take = [&](const BlockSite& site, BlockWeights& weights, BlockGradients& gradients) {
         SummedGradients sums;
         for (std::size_t i = 0; i < decoder.linears().size(); ++i)
           sums.push_back(gradients.finish(static_cast<int>(i)));
         if (use) use->take(site, weights, model, budget, sums);
       }});
  const double seconds = now() - start;
  const nlohmann::json& counted = monitor.last.at("flops");
  for (const auto& [phase, flops] : walk_flops(model.config(), decoder, options)) {
    if (std::abs(counted.at(phase).get<double>() - flops) > 1e-9 * flops)
      throw Error("block_bench and the walk disagree about " + phase);
  }
  BlockTable table("gradients", rates);
  for (const auto& [phase, part] : monitor.last.at("phases").items())
    table.add_phase(phase, part.get<double>(), counted.value(phase, 0.0));
  table.finish("whole walk", seconds);
  if (use) use->print();
  std::printf("\n");
  return table.facts();
}

void run(const Options& options) {
  const Scratch scratch;
  const CausalLM model(options.model.empty() ? synthesize(options, scratch.path())
                                             : std::filesystem::path(options.model));
  const std::string device = has_device("cuda") ? "cuda" : "cpu";
  const auto backend = make_backend(device, {.threads = options.threads});
  set_host_threads(options.threads);
  const auto decoder = make_decoder_block(model.config(), options.length, *backend);
  const auto team = make_local_communicator();
  Hdf5Store store(scratch.path() / "run");
  const Recipe recipe = recipe_of(options);
  const auto method = make_method(recipe);

  // Large enough for a GPU to be busy, small enough for a CPU.
  const std::int64_t n = backend->is_host_memory() ? 2048 : 8192;
  const Rates rates{matmul_rate(*backend, backend->activation_type(), n),
                    matmul_rate(*backend, DType::kF32, n), upload_rate(*backend)};
  const std::string name = options.model.empty() ? options.like : options.model;
  std::printf("%s: %s, hidden %lld, ffn %lld, %d x %d tokens, %s\n", backend->description().c_str(),
              name.c_str(), static_cast<long long>(model.config().hidden_size),
              static_cast<long long>(model.config().intermediate_size), options.samples,
              options.length, options.gradients ? "gradients" : recipe.name.c_str());
  std::printf(
      "matrix products of this machine (n = %lld): %.1f GFLOP/s with %s inputs, %.1f in F32",
      static_cast<long long>(n), rates.activations / 1e9,
      std::string(name_of(backend->activation_type())).c_str(), rates.f32 / 1e9);
  if (rates.host_to_device > 0)
    std::printf("; host to device %.1f GB/s", rates.host_to_device / 1e9);
  std::printf("\n\n");
  nlohmann::json facts{{"device", backend->description()},
                       {"model", name},
                       {"recipe", options.gradients ? "gradients" : recipe.name},
                       {"samples", options.samples},
                       {"length", options.length},
                       {"flops_per_second", rates.activations},
                       {"f32_flops_per_second", rates.f32},
                       {"host_to_device_bytes_per_second", rates.host_to_device}};

  // Only what the method asks for, as in a run.
  const Needs& needs = recipe.needs;
  ActivationBudget budget(std::size_t{1} << 40, scratch.path(),
                          backend->is_host_memory() ? nullptr : backend.get());
  std::optional<Samples> samples;
  std::optional<Activations> residual, original;
  if (needs.calibration()) samples = random_samples(options, model.config().vocabulary);
  if (needs.quantized_stream) residual.emplace(embed(model, *samples, budget, *backend));
  if (needs.full_precision_stream) original.emplace(embed(model, *samples, budget, *backend));

  NullMonitor monitor;
  ModelTask whole{*backend, *team, model, *decoder, samples ? &*samples : nullptr, monitor};
  nlohmann::json decision;
  const bool of_gradients = needs.gradients && !options.gradients;
  const bool from_statistics = of_gradients && !needs.makes_blocks_of_gradients();
  if (needs.decision && !from_statistics) decision = method->decide(whole);
  if (options.gradients) {
    facts["gradients"] = run_gradients(options, model, *decoder, *team, budget, rates,
                                       {.sum = false, .squares = true}, nullptr, *backend);
  } else if (of_gradients) {
    GradientUse use(recipe, *method, decision, store);
    facts["gradients"] = run_gradients(options, model, *decoder, *team, budget, rates,
                                       needs.gradients->sums, &use, *backend);
    whole.statistics = use.statistics();
  }
  if (from_statistics) decision = method->decide(whole);
  const int blocks = options.gradients || needs.makes_blocks_of_gradients()
                         ? 0
                         : std::min(options.blocks, static_cast<int>(model.config().blocks));
  for (int block = 0; block < blocks; ++block) {
    BlockTable table("block " + std::to_string(block), rates);
    const double start = now(), cpu_start = cpu_now();
    BlockWeights weights = decoder->load(model.checkpoint(), block, *backend);
    backend->sync();
    const double loaded = now(), cpu_loaded = cpu_now();
    const BlockSite site{.backend = *backend,
                         .team = *team,
                         .device_team = *team,
                         .decoder = *decoder,
                         .block = block,
                         .samples = samples ? &*samples : nullptr,
                         .monitor = monitor};
    BlockTask task{site,
                   model.checkpoint(),
                   weights,
                   residual ? &*residual : nullptr,
                   original ? &*original : nullptr,
                   budget,
                   backend->available_bytes() / 4,
                   decision};
    const QuantizedBlock result = method->quantize(task);
    const double quantized = now(), cpu_quantized = cpu_now();
    store.commit(block_key(recipe.name, block), to_record(result));
    const double end = now(), cpu_end = cpu_now();

    table.add_seconds("load", loaded - start, cpu_loaded - cpu_start);
    add_phases(table, result.record,
               make_method(recipe)->cost(*decoder, options.samples, options.length,
                                         backend->activation_type()));
    table.add_seconds("commit", end - quantized, cpu_end - cpu_quantized);
    table.finish("whole block", end - start);
    facts["blocks"].push_back(table.facts());
    facts["blocks"].back()["block"] = block;
  }
  if (!options.json.empty()) write_text_atomically(options.json, facts.dump(1) + "\n");
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  roundhouse::Options options;
  CLI::App app("Quantizes whole blocks; seconds by phase, beside their floors");
  auto* const like =
      app.add_option("--like", options.like, "a synthetic model of this published shape")
          ->capture_default_str();
  app.add_option("--model", options.model, "a model directory instead")
      ->check(CLI::ExistingDirectory)
      ->excludes(like);
  app.add_option("--blocks", options.blocks)->capture_default_str();
  app.add_option("--samples", options.samples)->capture_default_str();
  app.add_option("--length", options.length, "tokens a sample")->capture_default_str();
  app.add_option("--recipe", options.recipe, "as in a configuration, as JSON")
      ->capture_default_str();
  app.add_flag("--gradients", options.gradients, "the gradients of the loss in place of a recipe");
  app.add_option("--floors", options.floors, "only the floors: TFLOP/s, F32 TFLOP/s, GB/s")
      ->delimiter(',')
      ->expected(3);
  app.add_option("--threads", options.threads, "0: all")->capture_default_str();
  app.add_option("--json", options.json, "write the figures to this file too");
  CLI11_PARSE(app, argc, argv);
  try {
    if (options.floors.empty()) {
      roundhouse::run(options);
    } else {
      roundhouse::print_floors(options);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "block_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
