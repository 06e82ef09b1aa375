#include "stages/quantize/llm_mq/bit_allocation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/random.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kChoices = kWidths.size();

std::size_t choice_of(int bits) {
  return static_cast<std::size_t>(std::ranges::find(kWidths, bits) - kWidths.begin());
}

std::int64_t least_memory(const std::vector<WidthCosts>& linears) {
  std::int64_t sum = 0;
  for (const WidthCosts& linear : linears) sum += *std::ranges::min_element(linear.memory);
  return sum;
}

struct Best {
  double sensitivity = std::numeric_limits<double>::infinity();
  std::int64_t memory = 0;
};

// All 3^n ways.
Best try_all(const std::vector<WidthCosts>& linears, const std::vector<int>& tie,
             std::int64_t budget) {
  std::size_t ways = 1;
  for (std::size_t i = 0; i < linears.size(); ++i) ways *= kChoices;
  Best best;
  for (std::size_t way = 0; way < ways; ++way) {
    double sensitivity = 0;
    std::int64_t memory = 0;
    std::map<int, std::size_t> of_tie;
    bool tied = true;
    std::size_t rest = way;
    for (std::size_t i = 0; i < linears.size(); ++i, rest /= kChoices) {
      const std::size_t choice = rest % kChoices;
      sensitivity += linears[i].sensitivity[choice];
      memory += linears[i].memory[choice];
      if (!tie.empty()) tied &= of_tie.emplace(tie[i], choice).first->second == choice;
    }
    if (!tied || memory > budget) continue;
    if (sensitivity < best.sensitivity ||
        (sensitivity == best.sensitivity && memory < best.memory)) {
      best = {sensitivity, memory};
    }
  }
  return best;
}

// What an allocation says of itself is true.
void expect_consistent(const BitAllocation& got, const std::vector<WidthCosts>& linears,
                       const std::vector<int>& tie, std::int64_t budget) {
  ASSERT_EQ(got.bits.size(), linears.size());
  double sensitivity = 0;
  std::int64_t memory = 0;
  std::map<int, int> of_tie;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    ASSERT_THAT(kWidths, testing::Contains(got.bits[i]));
    sensitivity += linears[i].sensitivity[choice_of(got.bits[i])];
    memory += linears[i].memory[choice_of(got.bits[i])];
    if (!tie.empty()) {
      EXPECT_EQ(of_tie.emplace(tie[i], got.bits[i]).first->second, got.bits[i]);
    }
  }
  EXPECT_EQ(got.memory, memory);
  EXPECT_NEAR(got.sensitivity, sensitivity, 1e-12 * (1 + std::abs(sensitivity)));
  EXPECT_LE(memory, budget);
}

TEST(BitAllocationTest, FindsTheBestOfAll) {
  Random random(1);
  for (int round = 0; round < 600; ++round) {
    std::vector<WidthCosts> linears(1 + random.below(8));
    std::vector<int> tie;
    for (WidthCosts& linear : linears) {
      // Whole numbers, so that sums are exact and equal sums frequent; every third round sizes
      // without a common divisor, some of which do not grow with the width.
      const auto weights = static_cast<std::int64_t>(1 + random.below(round % 3 == 0 ? 1000 : 6));
      for (std::size_t choice = 0; choice < kChoices; ++choice) {
        linear.sensitivity[choice] = static_cast<double>(random.below(round % 2 == 0 ? 8 : 1000));
        linear.memory[choice] = weights * kWidths[choice];
        if (round % 3 == 0) linear.memory[choice] += static_cast<std::int64_t>(random.below(1500));
      }
      if (round % 5 == 0) std::ranges::sort(linear.sensitivity, std::greater());
      if (round % 7 < 3) tie.push_back(static_cast<int>(random.below(3)));
    }
    std::int64_t most = 0;
    for (const WidthCosts& linear : linears) most += *std::ranges::max_element(linear.memory);
    const std::int64_t least = least_memory(linears);
    const std::int64_t budget =
        least +
        static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(most - least) + 2));
    const Best want = try_all(linears, tie, budget);
    if (std::isinf(want.sensitivity)) {  // ties may take more than the least of each
      EXPECT_THROW(allocate_bits(linears, tie, budget), Error);
      continue;
    }
    const BitAllocation got = allocate_bits(linears, tie, budget);
    expect_consistent(got, linears, tie, budget);
    EXPECT_EQ(got.sensitivity, want.sensitivity) << "round " << round;
    EXPECT_EQ(got.memory, want.memory) << "round " << round;
  }
}

TEST(BitAllocationTest, FindsTheBestOfSensitivitiesOfAnySize) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    std::vector<WidthCosts> linears(7);
    for (WidthCosts& linear : linears) {
      const double size = std::exp(12 * random.normal());
      for (std::size_t choice = 0; choice < kChoices; ++choice) {
        linear.sensitivity[choice] = size * random.uniform();
        linear.memory[choice] = static_cast<std::int64_t>(1 + random.below(1u << 30));
      }
    }
    const std::int64_t budget = least_memory(linears) + (std::int64_t{1} << 30);
    const BitAllocation got = allocate_bits(linears, {}, budget);
    expect_consistent(got, linears, {}, budget);
    const Best want = try_all(linears, {}, budget);
    EXPECT_NEAR(got.sensitivity, want.sensitivity, 1e-12 * want.sensitivity) << "round " << round;
  }
}

TEST(BitAllocationTest, TakesTheLessMemoryOfEquals) {
  const std::vector<WidthCosts> linears = {
      {.name = "a", .sensitivity = {1, 1, 1}, .memory = {2, 3, 4}},
      {.name = "b", .sensitivity = {5, 4, 4}, .memory = {2, 3, 4}}};
  const BitAllocation got = allocate_bits(linears, {}, 100);
  EXPECT_THAT(got.bits, ElementsAre(2, 3));
  EXPECT_EQ(got.memory, 5);
  // Either of two equal ones may have the one bit that is left: always the same one has.
  const std::vector<WidthCosts> twins(2,
                                      {.name = "t", .sensitivity = {2, 1, 0}, .memory = {2, 3, 4}});
  EXPECT_EQ(allocate_bits(twins, {}, 5).bits, allocate_bits(twins, {}, 5).bits);
  EXPECT_EQ(allocate_bits(twins, {}, 5).sensitivity, 3);
}

TEST(BitAllocationTest, NothingIsNarrowerThanItMayBe) {
  const std::vector<WidthCosts> linears = {
      {.name = "a", .sensitivity = {0, 1, 2}, .memory = {2, 3, 4}, .narrowest = 3},
      {.name = "b", .sensitivity = {3, 2, 1}, .memory = {2, 3, 4}}};
  EXPECT_THAT(allocate_bits(linears, {}, 7).bits, ElementsAre(3, 4));
  EXPECT_EQ(allocate_bits(linears, {}, 7).sensitivity, 2);
  EXPECT_THAT(allocate_bits(linears, {}, 5).bits, ElementsAre(3, 2));
  EXPECT_THROW(allocate_bits(linears, {}, 4), Error);
  EXPECT_THAT(allocate_bits(linears, {0, 0}, 8).bits, ElementsAre(3, 3));
}

TEST(BitAllocationTest, SaysWhatCannotBe) {
  const auto error_of = [](std::vector<WidthCosts> linears, std::int64_t budget) {
    try {
      allocate_bits(linears, {}, budget);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("(no error)");
  };
  WidthCosts linear{
      .name = "block 3 mlp.up_proj", .sensitivity = {3, 2, 1}, .memory = {20, 30, 40}};
  EXPECT_THAT(error_of({linear, linear}, 39), HasSubstr("at least 40 bits"));
  EXPECT_EQ(error_of({linear, linear}, 40), "(no error)");
  linear.sensitivity[1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(error_of({linear}, 40), HasSubstr("block 3 mlp.up_proj: its sensitivity at 3 bits"));
}

TEST(BitAllocationTest, CountsMemory) {
  EXPECT_EQ(budget_of(2.2, 10), 22);  // 22.000000000000004 and 28.999999999999996 in binary
  EXPECT_EQ(budget_of(2.9, 10), 29);
  EXPECT_EQ(budget_of(2.6, 68'451'041'280), 177'972'707'328);
  EXPECT_EQ(budget_of(2.25, 3), 6);
  EXPECT_EQ(memory_of_codes(8192, 1024, 3), 8192 * 1024 * 3);
  EXPECT_EQ(memory_with_grids(4, 256, 2, 128), 4 * (256 * 2 + 2 * 18));
  EXPECT_EQ(memory_with_grids(4, 200, 2, 128), 4 * (200 * 2 + 2 * 18));
  EXPECT_EQ(memory_with_grids(4, 200, 4, -1), 4 * (200 * 4 + 20));
}

// Llama-2-70B: 80 blocks of 7 linears. Sensitivities are whole numbers, which a solver prints whole; they mostly fall with the width.
std::vector<WidthCosts> largest_model() {
  constexpr std::int64_t kHidden = 8192, kKeys = 1024, kInner = 28672;
  const std::array<std::pair<std::int64_t, std::int64_t>, 7> shapes = {{{kHidden, kHidden},
                                                                        {kKeys, kHidden},
                                                                        {kKeys, kHidden},
                                                                        {kHidden, kHidden},
                                                                        {kInner, kHidden},
                                                                        {kInner, kHidden},
                                                                        {kHidden, kInner}}};
  Random random(3);
  std::vector<WidthCosts> linears;
  for (int block = 0; block < 80; ++block) {
    for (const auto& [rows, cols] : shapes) {
      WidthCosts linear;
      linear.name = std::to_string(linears.size());
      const double size = 1000 * std::exp(1.5 * random.normal());
      for (std::size_t choice = 0; choice < kChoices; ++choice) {
        const double noise = std::exp(0.5 * random.normal());
        linear.sensitivity[choice] = std::round(size * noise / std::exp2(2 * choice));
        linear.memory[choice] = memory_of_codes(rows, cols, kWidths[choice]);
      }
      linears.push_back(linear);
    }
  }
  return linears;
}

// q, k, v of a block together, and gate and up.
std::vector<int> fused_ties(std::size_t linears) {
  constexpr std::array kPlace = {0, 0, 0, 1, 2, 2, 3};
  std::vector<int> tie;
  for (std::size_t i = 0; i < linears; ++i)
    tie.push_back(static_cast<int>(i / 7) * 4 + kPlace[i % 7]);
  return tie;
}

std::int64_t weights_of(const std::vector<WidthCosts>& linears) {
  std::int64_t weights = 0;
  for (const WidthCosts& linear : linears) weights += linear.memory[0] / kWidths[0];
  return weights;
}

TEST(BitAllocationTest, MoreMemoryIsNeverWorse) {
  const std::vector<WidthCosts> linears = largest_model();
  const std::vector<int> fused = fused_ties(linears.size());
  double before = std::numeric_limits<double>::infinity();
  for (int tenths = 20; tenths <= 40; tenths += 2) {
    const std::int64_t budget = budget_of(tenths / 10.0, weights_of(linears));
    const BitAllocation free = allocate_bits(linears, {}, budget);
    const BitAllocation tied = allocate_bits(linears, fused, budget);
    expect_consistent(free, linears, {}, budget);
    expect_consistent(tied, linears, fused, budget);
    EXPECT_LE(free.sensitivity, tied.sensitivity);
    EXPECT_LE(free.sensitivity, before);
    before = free.sensitivity;
  }
}

// The least sum by GLPK's branch and bound; negative: glpsol is not installed.
double solve_with_glpk(const std::vector<WidthCosts>& linears, std::int64_t budget) {
  constexpr std::int64_t kUnit = 8192 * 1024;  // all sizes are multiples of it
  const TemporaryFolder folder;
  const auto path = [&](const char* name) { return (folder.path() / name).string(); };
  std::ofstream problem(path("problem.lp"));
  const auto variable = [](std::size_t i, std::size_t choice) {
    return "x" + std::to_string(i) + "_" + std::to_string(kWidths[choice]);
  };
  const auto sum = [&](const auto& coefficient) {
    for (std::size_t i = 0; i < linears.size(); ++i) {
      for (std::size_t choice = 0; choice < kChoices; ++choice)
        problem << " + " << coefficient(linears[i], choice) << " " << variable(i, choice) << "\n";
    }
  };
  problem << "Minimize\n sensitivity:\n";
  sum([](const WidthCosts& linear, std::size_t choice) {
    return static_cast<std::int64_t>(linear.sensitivity[choice]);
  });
  problem << "Subject To\n memory:\n";
  sum([](const WidthCosts& linear, std::size_t choice) { return linear.memory[choice] / kUnit; });
  problem << " <= " << budget / kUnit << "\n";
  for (std::size_t i = 0; i < linears.size(); ++i) {
    problem << " one" << i << ":";
    for (std::size_t choice = 0; choice < kChoices; ++choice)
      problem << " + " << variable(i, choice);
    problem << " = 1\n";
  }
  problem << "Binary\n";
  for (std::size_t i = 0; i < linears.size(); ++i) {
    for (std::size_t choice = 0; choice < kChoices; ++choice)
      problem << " " << variable(i, choice) << "\n";
  }
  problem << "End\n";
  problem.close();
  const std::string command = "glpsol --lp " + path("problem.lp") +
                              " --cuts --tmlim 120 --output " + path("answer") + " > " +
                              path("log") + " 2>&1";
  if (std::system(command.c_str()) != 0) return -1;
  std::ifstream answer(path("answer"));
  std::stringstream text;
  text << answer.rdbuf();
  EXPECT_THAT(text.str(), HasSubstr("INTEGER OPTIMAL"));
  const std::string label = "sensitivity = ";
  return std::stod(text.str().substr(text.str().find(label) + label.size()));
}

TEST(BitAllocationTest, AgreesWithGlpkOnTheLargestModel) {
  if (std::system("glpsol --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "glpsol is not installed (Debian: glpk-utils)";
  const std::vector<WidthCosts> linears = largest_model();
  for (const double average : {2.0, 2.2, 2.6, 3.0, 3.4, 3.8, 4.0}) {
    const std::int64_t budget = budget_of(average, weights_of(linears));
    EXPECT_EQ(allocate_bits(linears, {}, budget).sensitivity, solve_with_glpk(linears, budget))
        << average;
  }
}

}  // namespace
}  // namespace roundhouse
