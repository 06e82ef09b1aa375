// What a job would do and take, before it is queued. No weight, text or GPU is needed.
#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "pipeline/commands/commands.h"
#include "pipeline/plan/measure.h"
#include "pipeline/plan/plan.h"
#include "pipeline/plan/plan_text.h"
#include "pipeline/plan/planned_inputs.h"
#include "pipeline/plan/scaling_table.h"
#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

DeviceRates rates_for(const PlanArguments& arguments, const RunConfig& config,
                      const ModelConfig& model) {
  if (arguments.measure) return measure_rates(config, model);
  if (!arguments.rates.empty()) return read_rates(arguments.rates);
  std::string device = arguments.device;
  if (device.empty()) device = config.device == "cpu" ? "cpu" : "h200";
  return rates_of_device(device == "cpu" && config.cpu_bf16 ? "cpu-bf16" : device);
}

std::int64_t longest_sample(const RunConfig& config) {
  std::int64_t longest = config.calibration.sequence_length;
  for (const Recipe& recipe : config.recipes) {
    if (recipe.needs.gradients)
      longest = std::max<std::int64_t>(longest, recipe.needs.gradients->sequence_length);
  }
  return longest;
}

}  // namespace

int plan_command(const PlanArguments& arguments) {
  const RunConfig config = read_config_of_plan(arguments.config, arguments.overrides);
  std::string name;
  const ModelConfig model = planned_model(config.model, arguments.like, name);
  const DeviceRates rates = rates_for(arguments, config, model);
  if (!arguments.write_rates.empty())
    write_text_atomically(arguments.write_rates, to_json(rates).dump(1) + "\n");
  const auto backend = make_backend("cpu", {.threads = 1});
  const auto decoder = make_decoder_block(model, longest_sample(config), *backend);
  for (const Recipe& recipe : config.recipes) {
    const int blocks = static_cast<int>(model.blocks);
    check_overrides(recipe, *decoder, blocks);
    make_method(recipe)->check(*decoder, blocks, recipe.overrides);
  }
  const PlanRequest request{config, model, *decoder, rates, arguments.config.string(), name};
  if (arguments.scaling) {
    std::fputs(scaling_text(request).c_str(), stdout);
    return kExitDone;
  }
  int ranks = arguments.ranks;
  if (ranks == 0)
    ranks = std::max(1, config.lanes) * std::max(1, config.pipeline_ranks) *
            std::max(1, config.data_ranks);
  const nlohmann::json plan =
      make_plan(request, ranks, states_on_disk(config, static_cast<int>(model.blocks)));
  std::fputs((arguments.json ? plan.dump(1) + "\n" : plan_text(plan)).c_str(), stdout);
  return kExitDone;
}

}  // namespace roundhouse
