// What was asked of the emulated device so far.
#pragma once

#include <cstdint>

namespace emulation {

struct Calls {
  std::int64_t kernels = 0;      // launches and calls of libraries that compute
  std::int64_t waits = 0;        // of the host, for streams and events
  std::int64_t bytes_up = 0;     // copied from the host to the device
  std::int64_t bytes_ahead = 0;  // of them, on a stream without kernels
  std::int64_t bytes_down = 0;   // and back
};
const Calls& calls();

}  // namespace emulation
