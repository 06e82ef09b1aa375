#include "stages/quantize/method.h"

#include "base/error.h"

namespace roundhouse {

bool Method::one_scheme_an_input() const { return true; }

nlohmann::json Method::decide(ModelTask&) const {
  throw Error("this method has nothing to decide for the whole model");
}

nlohmann::json Method::statistics(BlockTask&) const {
  throw Error("this method makes no statistics of gradients");
}

std::string Method::statistics_settings() const { return ""; }

BlockCost Method::cost(const DecoderBlock&, int, int) const { return {}; }

}  // namespace roundhouse
