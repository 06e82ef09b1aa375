// Quantizes whole blocks of a synthetic model, as a run does, and prints for each part of the work its seconds beside its
// floor: the seconds that its floating-point operations take at the rate that this machine was measured to multiply matrices
// at (16-bit inputs for what works on activations, F32 for factorizations and solving; on a CPU both are F32).
//
//   block_bench [--like llama-1.1b] [--blocks 2] [--samples 32] [--length 512] [--threads N] [--recipe JSON]
//   block_bench --recipe '{"method": "signround", "iterations": 5}' --blocks 1
//   block_bench --like llama-2-70b --samples 512 --length 2048 --floors 790,50,55     the floors alone, for a machine
//                                  elsewhere: TFLOP/s with 16-bit inputs, in F32, GB/s from host to device; runs nothing
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "model/causal_lm.h"
#include "model/synthetic.h"
#include "pipeline/hdf5_store.h"
#include "stages/quantize/block_record.h"
#include "stages/quantize/method.h"
#include "tests/bench/block_cost.h"

namespace roundhouse {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of five products of two n x n matrices, in FLOP/s.
double matmul_rate(Backend& backend, DType type, std::int64_t n) {
  Tensor a(backend, type, n, n), b(backend, type, n, n), c(backend, type, n, n);
  backend.zero(a.view());
  backend.zero(b.view());
  double best = 1e30;
  for (int i = 0; i < 6; ++i) {
    const double start = now();
    backend.linear({.x = a.view(), .w = b.view(), .bias = {}, .y = c.view()});
    backend.sync();
    if (i > 0) best = std::min(best, now() - start);
  }
  return 2.0 * static_cast<double>(n * n * n) / best;
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
  std::string like = "llama-1.1b", recipe = R"({"method": "gptq"})";
  std::vector<double> floors;
  int blocks = 2, samples = 32, length = 512, threads = 0;
};

void print_floors(const Options& options) {
  const Rates rates{options.floors.at(0) * 1e12, options.floors.at(1) * 1e12,
                    options.floors.at(2) * 1e9};
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto shape = make_decoder_block(shape_like(options.like), 1, *backend);
  const Recipe recipe = parse_recipe(nlohmann::json::parse(options.recipe));
  const BlockCost cost = cost_of_block(recipe, *shape, options.samples, options.length);
  std::printf("%s, %s, %d x %d tokens, one block on one device\n", options.like.c_str(),
              recipe.name.c_str(), options.samples, options.length);
  double total = 0;
  for (const auto& [phase, flops] : cost.flops) {
    const double rate = works_in_f32(phase) ? rates.f32 : rates.activations;
    std::printf("  %-10s %10.1f TFLOP at %6.1f TFLOP/s %8.2f s\n", phase.c_str(), flops / 1e12,
                rate / 1e12, flops / rate);
    total += flops / rate;
  }
  std::printf("  %-50s %6.2f s\n", "together", total);
  std::printf(
      "  %-10s %10.1f GB to and %.1f GB from the device at %.0f GB/s %6.2f s, beside the rest\n",
      "copies", cost.bytes_up / 1e9, cost.bytes_down / 1e9, rates.host_to_device / 1e9,
      std::max(cost.bytes_up, cost.bytes_down) / rates.host_to_device);
}

void run(const Options& options) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("roundhouse-bench-" + std::to_string(getpid()));
  SyntheticOptions synthetic;
  synthetic.config = shape_like(options.like);
  synthetic.config.blocks = options.blocks;
  write_synthetic_model(synthetic, folder / "model");

  const CausalLM model(folder / "model");
  const std::string device = has_device("cuda") ? "cuda" : "cpu";
  const auto backend = make_backend(device, {.threads = options.threads});
  const auto shape = make_decoder_block(model.config(), options.length, *backend);
  const auto team = make_local_communicator();
  Hdf5Store store(folder / "run");

  Random random(1);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(options.samples) *
                                static_cast<std::size_t>(options.length));
  for (std::int32_t& id : ids)
    id = static_cast<std::int32_t>(
        random.below(static_cast<std::uint64_t>(model.config().vocabulary)));
  const Samples samples(options.samples, options.length, std::min(16, options.samples), ids);
  ActivationBudget budget(std::size_t{1} << 40, folder,
                          backend->is_host_memory() ? nullptr : backend.get());
  const auto embed = [&] {
    Activations stream(budget, backend->activation_type(), model.config().hidden_size);
    for (int shard = 0; shard < samples.shards(); ++shard) {
      const PartRange range = samples.samples_of_shard(shard);
      stream.reserve(shard, (range.end - range.begin) * samples.length());
      for (const MicroBatch& batch : micro_batches_of_shard(samples, shard)) {
        const Tensor rows =
            model.embed(samples.ids(batch.first_sample, batch.sequences), options.length, *backend);
        stream.store(shard, batch.first_row, rows.view(), *backend);
      }
    }
    return stream;
  };
  Activations residual = embed(), original = embed();

  // Large enough for a GPU to be busy, small enough for a CPU.
  const std::int64_t n = backend->is_host_memory() ? 4096 : 8192;
  const Rates rates{matmul_rate(*backend, backend->activation_type(), n),
                    matmul_rate(*backend, DType::kF32, n), upload_rate(*backend)};
  const Recipe recipe = parse_recipe(nlohmann::json::parse(options.recipe));
  std::printf("%s: %s, hidden %lld, ffn %lld, %d x %d tokens, %s\n", backend->description().c_str(),
              options.like.c_str(), static_cast<long long>(model.config().hidden_size),
              static_cast<long long>(model.config().intermediate_size), options.samples,
              options.length, recipe.name.c_str());
  std::printf(
      "matrix products of this machine (n = %lld): %.1f GFLOP/s with %s inputs, %.1f in F32",
      static_cast<long long>(n), rates.activations / 1e9,
      std::string(name_of(backend->activation_type())).c_str(), rates.f32 / 1e9);
  if (rates.host_to_device > 0)
    std::printf("; host to device %.1f GB/s", rates.host_to_device / 1e9);
  std::printf("\n\n");

  const auto method = make_method(recipe);
  NullMonitor monitor;
  for (int block = 0; block < options.blocks; ++block) {
    const double start = now();
    BlockWeights weights = shape->load(model.checkpoint(), block, *backend);
    backend->sync();
    const double loaded = now();
    BlockTask task{.backend = *backend,
                   .team = *team,
                   .device_team = *team,
                   .checkpoint = model.checkpoint(),
                   .shape = *shape,
                   .block = block,
                   .weights = weights,
                   .samples = &samples,
                   .residual = &residual,
                   .original = &original,
                   .budget = budget,
                   .saved_activation_bytes = backend->available_bytes() / 4,
                   .monitor = monitor};
    const QuantizedBlock result = method->quantize(task);
    const double quantized = now();
    store.commit(block_key(recipe.name, block), to_record(result));
    const double end = now();

    std::printf("block %d            seconds     floor   share     GFLOP\n", block);
    const auto line = [&](const std::string& part, double seconds, double flops, double floor) {
      std::printf("  %-14s %9.3f", part.c_str(), seconds);
      if (flops > 0)
        std::printf(" %9.3f %5.1f %% %9.1f", floor, 100 * floor / seconds, flops / 1e9);
      std::printf("\n");
    };
    const auto floor_of = [&](const std::string& phase, double flops) {
      return flops / (works_in_f32(phase) ? rates.f32 : rates.activations);
    };
    double total = 0, floors = 0;
    line("load", loaded - start, 0, 0);
    const nlohmann::json& time = result.record["time"];
    const nlohmann::json& counted = result.record["flops"];
    for (const auto& [phase, seconds] : time.items()) {
      const double flops = counted.value(phase, 0.0);
      line(phase, seconds.get<double>(), flops, floor_of(phase, flops));
      total += flops;
      floors += floor_of(phase, flops);
    }
    for (const auto& [phase, flops] :
         cost_of_block(recipe, *shape, options.samples, options.length).flops) {
      const double here = counted.value(phase, 0.0);
      if (std::abs(here - flops) > 1e-9 * flops) {
        throw Error("block_cost.cpp and the method disagree about " + phase);
      }
    }
    line("commit", end - quantized, 0, 0);
    line("whole block", end - start, total, floors);
    if (!result.record.contains("iterations")) continue;
    const double steps = result.record["iterations"];
    double seconds = 0, flops = 0;
    for (const char* phase : {"fetch", "round", "forward", "backward", "keep", "step"}) {
      seconds += time.value(phase, 0.0);
      flops += counted.value(phase, 0.0);
    }
    line("one step", seconds / steps, flops / steps, floor_of("forward", flops) / steps);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  roundhouse::Options options;
  CLI::App app(
      "Quantizes whole blocks of a synthetic model; seconds by phase, beside their floors");
  app.add_option("--like", options.like, "published shape")->capture_default_str();
  app.add_option("--blocks", options.blocks)->capture_default_str();
  app.add_option("--samples", options.samples)->capture_default_str();
  app.add_option("--length", options.length, "tokens a sample")->capture_default_str();
  app.add_option("--recipe", options.recipe, "as in a configuration, as JSON")
      ->capture_default_str();
  app.add_option("--floors", options.floors, "only the floors: TFLOP/s, F32 TFLOP/s, GB/s")
      ->delimiter(',')
      ->expected(3);
  app.add_option("--threads", options.threads, "0: all")->capture_default_str();
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
