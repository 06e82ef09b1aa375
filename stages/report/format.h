// printf() into a text of at most 255 bytes.
#pragma once

#include <cstdio>
#include <string>

namespace roundhouse {

template <class... Args>
std::string format(const char* pattern, Args... args) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, args...);
  return text;
}

}  // namespace roundhouse
