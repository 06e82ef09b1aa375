// Quantizes whole blocks of a synthetic model with GPTQ, as a run does, and prints for each part of the work its seconds, its
// GFLOP/s, and its share of the matrix-product rate that this machine was measured to have.
//
//   block_bench [--like llama-1.1b] [--blocks 2] [--samples 32] [--length 512] [--bits 4] [--threads N]
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/random.h"
#include "comm/launcher.h"
#include "model/causal_lm.h"
#include "model/synthetic.h"
#include "pipeline/hdf5_store.h"
#include "stages/quantize/block_record.h"
#include "stages/quantize/method.h"

namespace roundhouse {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of five products of two n x n matrices, in FLOP/s.
double matmul_rate(Backend& backend, std::int64_t n) {
  Tensor a(backend, backend.activation_type(), n, n), b(backend, backend.activation_type(), n, n);
  Tensor c(backend, backend.activation_type(), n, n);
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

struct Options {
  std::string like = "llama-1.1b";
  int blocks = 2, samples = 32, length = 512, bits = 4, threads = 0;
};

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
  ActivationBudget budget(std::size_t{1} << 40, folder);
  Activations residual(budget, backend->activation_type(), model.config().hidden_size);
  for (int shard = 0; shard < samples.shards(); ++shard) {
    const PartRange range = samples.samples_of_shard(shard);
    const Tensor rows =
        model.embed(samples.ids(range.begin, range.end - range.begin), options.length, *backend);
    residual.reserve(shard, rows.rows());
    residual.store(shard, 0, rows.view(), *backend);
  }

  const double rate = matmul_rate(*backend, 4096);
  std::printf("%s: %s, hidden %lld, ffn %lld, %d x %d tokens, gptq-w%dg128\n",
              backend->description().c_str(), options.like.c_str(),
              static_cast<long long>(model.config().hidden_size),
              static_cast<long long>(model.config().intermediate_size), options.samples,
              options.length, options.bits);
  std::printf("matrix products of this machine (4096 x 4096 x 4096): %.1f GFLOP/s\n\n", rate / 1e9);

  const Recipe recipe =
      parse_recipe({{"method", "gptq"}, {"bits", options.bits}, {"group_size", 128}});
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
                   .original = nullptr,
                   .budget = budget,
                   .monitor = monitor};
    const QuantizedBlock result = method->quantize(task);
    const double quantized = now();
    store.commit(block_key(recipe.name, block), to_record(result));
    const double end = now();

    std::printf("block %d            seconds     GFLOP   GFLOP/s   share of the rate\n", block);
    const auto line = [&](const char* part, double seconds, double flops) {
      std::printf("  %-14s %9.3f", part, seconds);
      if (flops > 0)
        std::printf(" %9.1f %9.1f   %5.1f %%", flops / 1e9, flops / seconds / 1e9,
                    100 * flops / seconds / rate);
      std::printf("\n");
    };
    double total = 0;
    line("load", loaded - start, 0);
    for (const char* part : {"forward", "gram", "factor", "solve"}) {
      const double flops = result.record["flops"].value(part, 0.0);
      line(part, result.record["time"].value(part, 0.0), flops);
      total += flops;
    }
    line("commit", end - quantized, 0);
    line("whole block", end - start, total);
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  roundhouse::Options options;
  CLI::App app("GPTQ on whole blocks of a synthetic model, split by phase");
  app.add_option("--like", options.like, "published shape")->capture_default_str();
  app.add_option("--blocks", options.blocks)->capture_default_str();
  app.add_option("--samples", options.samples)->capture_default_str();
  app.add_option("--length", options.length, "tokens a sample")->capture_default_str();
  app.add_option("--bits", options.bits)->capture_default_str();
  app.add_option("--threads", options.threads, "0: all")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    roundhouse::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "block_bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
