// Reckons what one block takes on one GPU, kernel by kernel, without a GPU: the method runs as it is on a backend that only notes
// what would be queued, copied and waited for (tests/bench/reckoning/). So a change of the code changes the figures, and can be
// predicted before a machine is at hand. Nothing printed is measured.
//
//   gpu_reckoning                                        Llama-2-70B: GPTQ, AWQ, SignRound with their usual samples, and the sums
//   gpu_reckoning --recipe '{"method": "gptq"}' --samples 512 --length 2048 [--like llama-2-70b] [--rate bf16=600e12 ...]
#include <CLI/CLI.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/host_threads.h"
#include "model/synthetic.h"
#include "pipeline/plan/device_rates.h"
#include "tests/bench/reckoning/reckoned_block.h"
#include "tests/bench/reckoning/recording_backend.h"

namespace roundhouse {
namespace {

struct Problem {
  std::string recipe;
  int samples, length;
};
struct Options {
  std::string like = "llama-2-70b", recipe;
  int samples = 512, length = 2048, threads = 0;
  std::vector<std::string> rates;
  bool list_rates = false;
};

GpuRates rates_of(const Options& options) {
  GpuRates rates;
  for (const std::string& text : options.rates) {
    const std::size_t equals = text.find('=');
    const auto found = std::ranges::find_if(rate_names(), [&](const RateName& rate) {
      return equals != text.npos && text.substr(0, equals) == rate.name;
    });
    double value = 0;
    if (found == rate_names().end() || !CLI::detail::lexical_cast(text.substr(equals + 1), value) ||
        value <= 0) {
      throw InputError("--rate: \"" + text +
                       "\" is not NAME=NUMBER of a rate that --list-rates names");
    }
    rates.*found->value = value;
  }
  return rates;
}

void print_rates(const GpuRates& rates) {
  for (const RateName& rate : rate_names())
    std::printf("  %-20s %10.4g  %s\n", rate.name, rates.*rate.value, rate.what);
}

void print_kernels(const DeviceTimeline& timeline) {
  std::vector<std::pair<std::string, KernelSum>> rows(timeline.kernels().begin(),
                                                      timeline.kernels().end());
  std::ranges::stable_sort(
      rows, [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::printf("  %-30s %9s %9s %10s %10s %9s  %s\n", "kernel", "calls", "kernels", "TFLOP", "GB",
              "s", "bound by");
  for (const auto& [name, sum] : rows) {
    const auto most =
        std::ranges::max_element(sum.bound, {}, [](const auto& part) { return part.second; });
    std::printf("  %-30s %9lld %9lld %10.1f %10.1f %9.3f  %s\n", name.c_str(),
                static_cast<long long>(sum.calls), static_cast<long long>(sum.kernels),
                sum.flops / 1e12, sum.bytes / 1e9, sum.seconds, most->first.c_str());
  }
}

// By phase: what the time line gives, and what the planner's rates make of the operations it knows.
void print_phases(const nlohmann::json& record, const BlockCost& cost, const std::string& method) {
  const DeviceRates plan = rates_of_device("h200");
  std::printf("  %-30s %9s %10s %12s\n", "phase", "s", "TFLOP", "planner's s");
  double all = 0, of_plan = 0;
  for (const auto& [phase, seconds] : record.at("phases").items()) {
    const auto found = cost.flops.find(phase);
    const double flops = found == cost.flops.end() ? 0 : found->second;
    const auto attention = cost.attention.find(phase);
    double planned = flops / plan.rate_of(method, phase) +
                     (attention == cost.attention.end() ? 0 : attention->second / plan.attention);
    if (phase == "solve") planned += cost.rounded / plan.round;
    all += seconds.get<double>();
    of_plan += planned;
    std::printf("  %-30s %9.3f %10.1f %12.3f\n", phase.c_str(), seconds.get<double>(), flops / 1e12,
                planned);
  }
  std::printf("  %-30s %9.3f %10s %12.3f\n", "together", all, "", of_plan);
}

double reckon(const Options& options, const Problem& problem, const std::filesystem::path& model) {
  RecordingBackend backend(rates_of(options));
  const nlohmann::json recipe = nlohmann::json::parse(problem.recipe);
  const std::string method = recipe.at("method").get<std::string>();
  if (method == "signround") backend.set_parts_of_step(8);
  double begin = 0;
  const BlockResult result = run_block({.model = model,
                                        .samples = problem.samples,
                                        .length = problem.length,
                                        .recipe = recipe,
                                        .on_values = false,
                                        .begin =
                                            [&] {
                                              begin = backend.seconds();
                                              backend.timeline().forget();
                                              backend.forget_peak();
                                            }},
                                       backend);
  const double seconds = backend.seconds() - begin;
  const DeviceTimeline& timeline = backend.timeline();
  const DeviceRates plan = rates_of_device("h200");
  std::printf("\n%s, %s, %d x %d tokens, one block on one GPU\n", options.like.c_str(),
              recipe.dump().c_str(), problem.samples, problem.length);
  print_kernels(timeline);
  print_phases(result.record, result.cost, method);
  const DeviceCounts& counts = timeline.counts();
  std::printf("  the device works %.3f s of %.3f; the host waits %.3f s for it\n",
              timeline.busy_seconds(), seconds, timeline.waited_seconds());
  std::printf(
      "  %lld kernels, %lld waits; %.1f GB to and %.1f GB from the device (planner: %.1f, %.1f), "
      "%.2f s and %.2f s beside the kernels\n",
      static_cast<long long>(counts.kernels), static_cast<long long>(counts.waits),
      static_cast<double>(counts.bytes_up) / 1e9, static_cast<double>(counts.bytes_down) / 1e9,
      result.cost.bytes_up / 1e9, result.cost.bytes_down / 1e9, timeline.copies_up(),
      timeline.copies_down());
  std::printf("  %.1f GB of device memory at most\n",
              static_cast<double>(backend.peak_bytes()) / 1e9);
  std::printf("  besides, by the planner's rates: weights %.2f s, record %.2f s\n",
              2 * result.weights / plan.load, result.weights / plan.commit);
  return seconds;
}

void run(const Options& options) {
  if (options.list_rates) return print_rates(rates_of(options));
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("roundhouse-reckoning-" + std::to_string(getpid()));
  struct Gone {
    const std::filesystem::path& folder;
    ~Gone() {
      std::error_code ignored;
      std::filesystem::remove_all(folder, ignored);
    }
  } gone{folder};
  set_host_threads(options.threads);
  ModelConfig config = shape_like(options.like);
  config.blocks = 1;
  write_hollow_model(config, folder);
  std::vector<Problem> problems = {{R"({"method": "rtn"})", 512, 2048},
                                   {R"({"method": "gptq"})", 512, 2048},
                                   {R"({"method": "gptq", "true_sequential": false})", 512, 2048},
                                   {R"({"method": "awq"})", 65, 512},
                                   {R"({"method": "signround"})", 512, 2048}};
  if (!options.recipe.empty()) problems = {{options.recipe, options.samples, options.length}};
  std::vector<double> seconds;
  for (const Problem& problem : problems) seconds.push_back(reckon(options, problem, folder));
  std::printf("\nreckoned, not measured, at\n");
  print_rates(rates_of(options));
  std::printf("\n");
  for (std::size_t i = 0; i < problems.size(); ++i) {
    std::printf("  %-50s %4d x %4d  %8.2f s\n", problems[i].recipe.c_str(), problems[i].samples,
                problems[i].length, seconds[i]);
  }
}

}  // namespace
}  // namespace roundhouse

int main(int argc, char** argv) {
  roundhouse::Options options;
  CLI::App app("Reckons what one block takes on one GPU, kernel by kernel");
  app.add_option("--like", options.like, "a published shape")->capture_default_str();
  app.add_option("--recipe", options.recipe,
                 "as in a configuration, as JSON; without: each method");
  app.add_option("--samples", options.samples)->capture_default_str();
  app.add_option("--length", options.length, "tokens a sample")->capture_default_str();
  app.add_option("--rate", options.rates, "NAME=NUMBER, such as bf16=600e12");
  app.add_flag("--list-rates", options.list_rates, "the rates, and nothing else");
  app.add_option("--threads", options.threads, "of the host; 0: all")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    roundhouse::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_reckoning: %s\n", error.what());
    return 1;
  }
  return 0;
}
