#include <cstdio>

#include "base/error.h"
#include "model/synthetic.h"
#include "pipeline/commands/commands.h"

namespace roundhouse {

int synth_command(const SynthArguments& arguments) {
  SyntheticOptions options;
  options.config = shape_like(arguments.like);
  if (arguments.blocks > 0) options.config.blocks = arguments.blocks;
  options.seed = arguments.seed;
  options.tokenizer = arguments.tokenizer;
  write_synthetic_model(options, arguments.output);
  std::printf(
      "%s: %lld blocks of the shape of %s, random weights (for benchmarks, never for accuracy)\n",
      arguments.output.string().c_str(), static_cast<long long>(options.config.blocks),
      arguments.like.c_str());
  return 0;
}

}  // namespace roundhouse
