#include "base/random.h"

#include <cmath>
#include <numbers>

namespace roundhouse {

double Random::normal() {
  // One of the pair only: no state besides the counter, so a generator can be rebuilt from it.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

}  // namespace roundhouse
