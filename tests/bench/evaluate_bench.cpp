// Evaluates questions of mixed lengths, as tasks have them, and prints tokens a second, and the matrix products in them as a share of the
// rate at which this machine was measured to multiply matrices. Then, with --windows, what the divergence of two models takes beyond
// measuring both perplexities, in processor seconds, which other programs on the machine change little: the least of several each.
//
//   evaluate_bench [--like llama-1.1b] [--blocks 2] [--questions 64] [--longest 400] [--threads N] [--windows 0]
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>

#include "base/error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "model/synthetic.h"
#include "stages/evaluate/log_likelihood.h"
#include "tests/bench/random_tensor.h"

namespace roundhouse {
namespace {

struct Options {
  std::string like = "llama-1.1b";
  int blocks = 2, questions = 64, longest = 400, threads = 0, windows = 0;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<ScoredSequence> questions(const Options& options, std::int64_t vocabulary) {
  Random random(1);
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(n)));
  };
  std::vector<ScoredSequence> sequences;
  for (int i = 0; i < options.questions; ++i) {
    ScoredSequence sequence;
    const std::int64_t length = 5 + below(options.longest);
    for (std::int64_t t = 0; t < length; ++t) sequence.ids.push_back(below(vocabulary));
    sequence.scored.push_back({length - 5, {below(vocabulary), 1, 2, 3, 4}});
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// Of the longest length, with a token scored behind all tokens but the last.
std::vector<ScoredSequence> windows(const Options& options, std::int64_t vocabulary) {
  Random random(2);
  std::vector<ScoredSequence> sequences;
  for (int i = 0; i < options.windows; ++i) {
    ScoredSequence sequence;
    for (int t = 0; t < options.longest; ++t) {
      sequence.ids.push_back(
          static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(vocabulary))));
    }
    sequence.scored.push_back({0, {sequence.ids.begin() + 1, sequence.ids.end()}});
    sequences.push_back(std::move(sequence));
  }
  return sequences;
}

// The model stands for both.
void bench_divergence(const Options& options, const CausalLM& model, const DecoderBlock& decoder,
                      Backend& backend, ActivationBudget& budget) {
  const std::vector<ScoredSequence> sequences = windows(options, model.config().vocabulary);
  const BlockSource source = [&](int block) {
    return decoder.load(model.checkpoint(), block, backend);
  };
  NullMonitor monitor;
  const auto world = make_local_communicator();
  const auto processor_seconds = [](const std::function<void()>& work) {
    const std::clock_t start = std::clock();  // of all threads
    work();
    return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  };
  double both = std::numeric_limits<double>::infinity(), compared = both;
  for (int repeat = 0; repeat < 3; ++repeat) {
    both =
        std::min(both, processor_seconds([&] {
                   for (int of = 0; of < 2; ++of) {
                     (void)measure_log_likelihoods(model, decoder, source, sequences, Greedy::kNo,
                                                   backend, *world, budget, monitor);
                   }
                 }));
    compared = std::min(compared, processor_seconds([&] {
                          (void)compare_models(model, decoder, source, source, sequences,
                                               Greedy::kNo, backend, *world, budget, monitor);
                        }));
  }
  std::printf(
      "%d windows of %d tokens, a vocabulary of %lld: perplexities of two models %.2f s of "
      "processors, the "
      "second one's with the divergence from the first %.2f s: %+.1f %%\n",
      options.windows, options.longest, static_cast<long long>(model.config().vocabulary), both,
      compared, 100 * (compared / both - 1));
}

void bench(const Options& options) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("roundhouse-evaluate-" + std::to_string(getpid()));
  SyntheticOptions synthetic;
  synthetic.config = shape_like(options.like);
  synthetic.config.blocks = options.blocks;
  write_synthetic_model(synthetic, folder / "model");
  const CausalLM model(folder / "model");
  const auto backend = make_backend("cpu", {.threads = options.threads});
  const auto decoder = make_decoder_block(model.config(), options.longest + 5, *backend);
  std::map<int, BlockWeights> weights;  // loaded beforehand: what is measured is the walk
  for (int b = 0; b < options.blocks; ++b)
    weights.emplace(b, decoder->load(model.checkpoint(), b, *backend));

  const std::vector<ScoredSequence> sequences = questions(options, model.config().vocabulary);
  double tokens = 0, padded = 0, scored = 0;
  for (const EvaluationBatch& batch : cut_batches(sequences))
    padded += static_cast<double>(std::ssize(batch.sequences) * batch.length);
  for (const ScoredSequence& sequence : sequences) {
    tokens += static_cast<double>(sequence.ids.size());
    scored += static_cast<double>(sequence.scored[0].targets.size());
  }
  double flops =
      2 * scored * static_cast<double>(model.config().vocabulary * model.config().hidden_size);
  for (const LinearSpec& linear : decoder->linears())
    flops += 2 * tokens * options.blocks * static_cast<double>(linear.rows * linear.cols);

  const double rate = matmul_rate(*backend, backend->activation_type(), 2048);
  NullMonitor monitor;
  ActivationBudget budget(std::size_t{4} << 30, folder);
  const auto world = make_local_communicator();
  // A block's weights are read again: a copy in memory stands for the file.
  const BlockSource source = [&](int block) { return std::move(weights.at(block)); };
  const double start = now();
  (void)measure_log_likelihoods(model, *decoder, source, sequences, Greedy::kNo, *backend, *world,
                                budget, monitor);
  const double seconds = now() - start;
  std::printf("%s, %d blocks: %d questions, %.0f tokens (%.0f padded), %.2f s\n",
              options.like.c_str(), options.blocks, options.questions, tokens, padded, seconds);
  std::printf("%.0f tokens/s, %.1f GFLOP/s of %.1f GFLOP/s: %.0f %%\n", tokens / seconds,
              flops / seconds / 1e9, rate / 1e9, 100 * flops / seconds / rate);
  if (options.windows > 0) bench_divergence(options, model, *decoder, *backend, budget);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  roundhouse::Options options;
  CLI::App app("Benchmark of the walk of evaluations");
  app.add_option("--like", options.like);
  app.add_option("--blocks", options.blocks)->check(CLI::PositiveNumber);
  app.add_option("--questions", options.questions)->check(CLI::PositiveNumber);
  app.add_option("--longest", options.longest)->check(CLI::Range(1, 2000));
  app.add_option("--threads", options.threads);
  app.add_option("--windows", options.windows)->check(CLI::NonNegativeNumber);
  CLI11_PARSE(app, argc, argv);
  try {
    roundhouse::bench(options);
    return 0;
  } catch (const roundhouse::Error& error) {
    std::fprintf(stderr, "evaluate_bench: %s\n", error.what());
    return 1;
  }
}
