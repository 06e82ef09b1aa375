// The smallest and the largest weight of a group.
#pragma once

#include <cstdint>

namespace roundhouse {

struct GroupRange {
  float lo;
  float hi;
};

// Both NaN if there is one among them. Precondition: n > 0.
GroupRange range_of(const float* w, std::int64_t n);

}  // namespace roundhouse
