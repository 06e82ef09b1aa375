// Floats as numbers that sort like them, for host and device code alike.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/host_device.h"

namespace roundhouse {

// Unsigned numbers in the order of the floats, and back. -0 is 0.
ROUNDHOUSE_HD inline std::uint32_t key_of(float value) {
  const float positive_zero = value + 0.0f;
  std::uint32_t bits;
  memcpy(&bits, &positive_zero, sizeof(bits));
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
ROUNDHOUSE_HD inline float value_of_key(std::uint32_t key) {
  const std::uint32_t bits = (key >> 31) != 0 ? key & 0x7fffffffu : ~key;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace roundhouse
