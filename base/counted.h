// Counts in lines for people.
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace roundhouse {

// "1 rank", "8 ranks"; of things whose plural is formed by an s.
std::string counted(std::integral auto count, std::string_view thing) {
  return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

}  // namespace roundhouse
