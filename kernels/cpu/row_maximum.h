// The largest value of a row, and where it stands: no greater work than a pass over the row.
#pragma once

#include <cstdint>
#include <limits>

#include "kernels/cpu/vector_math.h"

namespace roundhouse {

// The first of the largest values of a row that is not empty. NaN is never the largest; 0 if nothing else is there.
inline std::int64_t column_of_largest(const float* x, std::int64_t n) {
  constexpr std::int64_t kChunk = 64 * kLanes;  // what is looked through again, value by value
  float largest = -std::numeric_limits<float>::infinity();
  std::int64_t chunk = 0;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t end = n - begin < kChunk ? n : begin + kChunk;
    float here = largest;
    std::int64_t done = begin;
    Lanes high = here - Lanes{};
    for (; done + kLanes <= end; done += kLanes) {
      const Lanes next = *reinterpret_cast<const Lanes*>(x + done);
      high = next > high ? next : high;
    }
    for (int lane = 0; lane < kLanes; ++lane) here = high[lane] > here ? high[lane] : here;
    for (; done < end; ++done) here = x[done] > here ? x[done] : here;
    if (here > largest) {
      largest = here;
      chunk = begin;
    }
  }
  const std::int64_t end = n - chunk < kChunk ? n : chunk + kChunk;
  for (std::int64_t i = chunk; i < end; ++i) {
    if (x[i] == largest) return i;
  }
  return 0;
}

}  // namespace roundhouse
