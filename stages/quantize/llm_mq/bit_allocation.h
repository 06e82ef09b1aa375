// LLM-MQ's integer program: how many bits each linear of a model gets, so that the sum of sensitivities is least within a memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace roundhouse {

inline constexpr std::array<int, 3> kWidths = {2, 3, 4};

// What one linear costs at each of kWidths. A wider code may well be the more sensitive one.
struct WidthCosts {
  std::string name;  // for messages
  std::array<double, kWidths.size()> sensitivity = {};
  std::array<std::int64_t, kWidths.size()> memory = {};  // bits
  int narrowest = kWidths.front();                       // it gets no fewer bits
};

struct BitAllocation {
  std::vector<int> bits;  // of each linear
  double sensitivity = 0;
  std::int64_t memory = 0;  // bits
};

// The least sum of sensitivities of all ways to choose widths whose memory is at most `budget` bits; linears with the same number in
// `tie` have the same width (empty: each has its own). Among equal sums the one with less memory, and of those always the same one.
// Exact: a list of all sums worth keeping, linear by linear. It has at most (budget - least memory) / d + 1 entries, where d divides
// every size; what a Lagrangian bound excludes is left out. Throws Error naming a linear whose sensitivity is not finite, or
// if `budget` is too small for any choice.
BitAllocation allocate_bits(const std::vector<WidthCosts>& linears, const std::vector<int>& tie,
                            std::int64_t budget);

// Bits that `weights` take at `average` each, which need not be representable: 2.2 of 10 are 22.
std::int64_t budget_of(double average, std::int64_t weights);
// Memory of a linear's codes, as the paper counts; with a float16 scale and a zero point for each group of columns (-1: the row).
std::int64_t memory_of_codes(std::int64_t rows, std::int64_t cols, int bits);
std::int64_t memory_with_grids(std::int64_t rows, std::int64_t cols, int bits,
                               std::int64_t group_size);

}  // namespace roundhouse
