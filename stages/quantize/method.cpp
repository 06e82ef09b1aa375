#include "stages/quantize/method.h"

#include <fmt/format.h>

#include "base/error.h"
#include "model/block/model_units.h"
#include "stages/flow/micro_batch.h"
#include "stages/flow/phase_clock.h"
#include "stages/quantize/row_tiles.h"

namespace roundhouse {

bool skips_all(const BlockTask& task) {
  for (std::size_t i = 0; i < task.decoder.linears().size(); ++i) {
    if (!task.skips(i)) return false;
  }
  return true;
}

QuantizedBlock keep_block(BlockTask& task) {
  QuantizedBlock block{.block = task.block, .linears = {}, .record = nlohmann::json::object()};
  PhaseClock clock(task.backend);
  task.monitor.phase(fmt::format("{}: left as it is", unit_name(task.block, task.decoder)));
  clock.measure("output", [&] {
    if (!task.decoder.flows()) return;
    if (task.residual) run_forward(task, task.weights, *task.residual);
    if (task.makes_original())
      run_forward(task, task.weights, *task.original, task.output_of_original());
  });
  for (const LinearSpec& spec : task.decoder.linears()) {
    if (task.commits()) block.linears.push_back(kept_linear(spec));
  }
  clock.write(block.record);
  return block;
}

std::string Method::cannot_include(const std::string&) const {
  return "this method makes linears of blocks only; rtn makes embed_tokens and lm_head, gptq "
         "lm_head";
}

void Method::check(const DecoderBlock&, int, std::span<const LinearOverride>) const {}

bool Method::one_scheme_an_input() const { return true; }

nlohmann::json Method::decide(ModelTask&) const {
  throw Error("this method has nothing to decide for the whole model");
}

nlohmann::json Method::statistics(BlockTask&) const {
  throw Error("this method makes no statistics of gradients");
}

std::string Method::statistics_settings() const { return ""; }

BlockCost Method::cost(const DecoderBlock&, int, int, DType, MadeBefore) const { return {}; }

}  // namespace roundhouse
