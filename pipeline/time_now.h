#pragma once

#include <string>

namespace roundhouse {

std::string time_now();  // ISO 8601, UTC, with milliseconds

}  // namespace roundhouse
