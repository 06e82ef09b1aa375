#include "stages/store/quantized_weights.h"

#include <algorithm>

#include "base/error.h"
#include "stages/store/block_record.h"

namespace roundhouse {

BlockWeights load_quantized_weights(const CausalLM& model, const DecoderBlock& decoder,
                                    RunStore& store, const std::string& recipe, int block,
                                    Backend& backend) {
  const std::string key = block_key(recipe, block);
  const auto record = store.load(key);
  if (!record) throw Error(key + ": missing or damaged; `roundhouse run` makes it again");
  const QuantizedBlock quantized = block_from_record(*record, decoder);
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

}  // namespace roundhouse
