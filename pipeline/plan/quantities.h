// Times and sizes as plans print them: three or four digits and a unit.
#pragma once

#include <string>

namespace roundhouse {

std::string clock(double seconds);  // "4.2 s", "12.9 min", "3.63 h"
std::string size(double bytes);     // "228.2 kB", "37.4 MB", "1.20 TB"

}  // namespace roundhouse
