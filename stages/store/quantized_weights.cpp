#include "stages/store/quantized_weights.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "stages/store/block_record.h"

namespace roundhouse {

namespace {

QuantizedBlock load_unit(const DecoderBlock& decoder, RunStore& store, const std::string& recipe,
                         int unit) {
  const std::string key = block_key(recipe, unit);
  const auto record = store.load(key);
  if (!record) throw Error(key + ": missing or damaged; `roundhouse run` makes it again");
  return block_from_record(*record, decoder);
}

}  // namespace

BlockWeights load_quantized_weights(const CausalLM& model, const DecoderBlock& decoder,
                                    RunStore& store, const std::string& recipe, int block,
                                    Backend& backend) {
  const QuantizedBlock quantized = load_unit(decoder, store, recipe, block);
  const bool originals = std::ranges::any_of(quantized.linears, &QuantizedLinear::original);
  BlockWeights weights = decoder.load(model.checkpoint(), block, backend,
                                      originals ? LoadLinears::kYes : LoadLinears::kNo);
  for (std::size_t i = 0; i < quantized.linears.size(); ++i) {
    if (quantized.linears[i].original) continue;
    weights.linears[i] = dequantize(quantized.linears[i], backend);
  }
  replace(weights, quantized.replaced, decoder, backend);
  return weights;
}

OuterLinears load_outer_linears(const DecoderBlock& outer, RunStore& store,
                                const std::string& recipe, int unit) {
  OuterLinears linears;
  QuantizedBlock block = load_unit(outer, store, recipe, unit);
  for (QuantizedLinear& linear : block.linears) {
    if (linear.original) continue;
    auto& place = linear.name == kOuterLinears.back() ? linears.head : linears.embedding;
    place = std::move(linear);
  }
  return linears;
}

}  // namespace roundhouse
