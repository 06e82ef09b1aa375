#include "pipeline/time_now.h"

#include <chrono>

#include <fmt/chrono.h>
#include <fmt/format.h>

namespace roundhouse {

std::string time_now() {
  using namespace std::chrono;
  const auto now = floor<milliseconds>(system_clock::now());
  const auto part = (now - floor<seconds>(now)).count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z", fmt::gmtime(system_clock::to_time_t(now)),
                     part);
}

}  // namespace roundhouse
