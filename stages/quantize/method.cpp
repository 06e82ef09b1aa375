#include "stages/quantize/method.h"

#include "base/error.h"

namespace roundhouse {

nlohmann::json Method::decide(ModelTask&) const {
  throw Error("this method has nothing to decide for the whole model");
}

BlockCost Method::cost(const DecoderBlock&, int, int) const { return {}; }

}  // namespace roundhouse
