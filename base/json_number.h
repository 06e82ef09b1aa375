#pragma once

#include <cmath>

#include <nlohmann/json.hpp>

namespace roundhouse {

// JSON has no NaN and no infinity: null stands for both.
template <class Json = nlohmann::json>
Json number_or_null(double value) {
  return std::isfinite(value) ? Json(value) : Json();
}

}  // namespace roundhouse
