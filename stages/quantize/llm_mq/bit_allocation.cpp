#include "stages/quantize/llm_mq/bit_allocation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include <fmt/format.h>

#include "base/numerical_error.h"

namespace roundhouse {
namespace {

constexpr std::size_t kChoices = kWidths.size();

// Linears of one width: their sums. What is narrower than the narrowest that they may have is that one.
struct Item {
  std::array<double, kChoices> sensitivity = {};
  std::array<std::int64_t, kChoices> memory = {};
  int narrowest = kWidths.front();

  // The choice of the least sensitivity + price * memory; the one with less memory among equals.
  std::size_t best(double price) const {
    std::size_t best = 0;
    for (std::size_t choice = 1; choice < kChoices; ++choice) {
      const double mine = cost(choice, price), least = cost(best, price);
      if (mine < least || (mine == least && memory[choice] < memory[best])) best = choice;
    }
    return best;
  }
  double cost(std::size_t choice, double price) const {
    return sensitivity[choice] + price * static_cast<double>(memory[choice]);
  }
  std::int64_t least_memory() const { return *std::ranges::min_element(memory); }
};

struct Total {
  double sensitivity = 0;
  std::int64_t memory = 0;
};

Total total_at(const std::vector<Item>& items, double price) {
  Total total;
  for (const Item& item : items) {
    const std::size_t choice = item.best(price);
    total.sensitivity += item.sensitivity[choice];
    total.memory += item.memory[choice];
  }
  return total;
}

// For any price of a bit, no choice for the items from i on that fits into the rest of the budget has a sensitivity below
// sum of min (sensitivity + price memory) - price rest. The price is the one at which the best choices just fit, or about that.
class LagrangianBound {
 public:
  LagrangianBound(const std::vector<Item>& items, std::int64_t budget) : budget_(budget) {
    double scale = 0;
    for (const Item& item : items) {
      for (std::size_t choice = 0; choice < kChoices; ++choice) {
        scale += std::abs(item.sensitivity[choice]);
        for (std::size_t other = 0; other < choice; ++other) {
          const auto more = static_cast<double>(item.memory[choice] - item.memory[other]);
          const double less = item.sensitivity[other] - item.sensitivity[choice];
          if (more != 0) price_ = std::max(price_, 2 * std::abs(less / more));
        }
      }
    }
    Total fits = total_at(items, 0);
    if (fits.memory <= budget) {
      price_ = 0;
    } else {
      // At a price above every slope all items are at their least memory, which fits.
      fits = total_at(items, price_);
      double low = 0;
      for (int step = 0; step < 60; ++step) {
        const double middle = (low + price_) / 2;
        const Total total = total_at(items, middle);
        if (total.memory <= budget) {
          price_ = middle;
          fits = total;
        } else {
          low = middle;
        }
      }
    }
    rest_.assign(items.size() + 1, 0);
    for (std::size_t i = items.size(); i-- > 0;) {
      rest_[i] = rest_[i + 1] + items[i].cost(items[i].best(price_), price_);
    }
    // Rounding must not exclude the best: sums of this many terms of this size are off by far less.
    limit_ = fits.memory <= budget ? fits.sensitivity : std::numeric_limits<double>::infinity();
    limit_ += 1e-9 * (scale + price_ * static_cast<double>(budget));
  }

  bool excludes(const Total& so_far, std::size_t next_item) const {
    const auto left = static_cast<double>(budget_ - so_far.memory);
    return so_far.sensitivity + rest_[next_item] - price_ * left > limit_;
  }

 private:
  std::int64_t budget_;
  double price_ = 0;
  std::vector<double> rest_;
  double limit_ = 0;  // what some choice that fits reaches
};

std::vector<Item> items_of(const std::vector<WidthCosts>& linears,
                           const std::vector<std::size_t>& item_of) {
  std::vector<Item> items;
  for (std::size_t i = 0; i < linears.size(); ++i) {
    items.resize(std::max(items.size(), item_of[i] + 1));
    for (std::size_t choice = 0; choice < kChoices; ++choice) {
      if (!std::isfinite(linears[i].sensitivity[choice])) {
        throw UnquantizableError(fmt::format("{}: its sensitivity at {} bits is not finite",
                                             linears[i].name, kWidths[choice]));
      }
      require(linears[i].memory[choice] >= 0, "memory is not negative");
      items[item_of[i]].sensitivity[choice] += linears[i].sensitivity[choice];
      items[item_of[i]].memory[choice] += linears[i].memory[choice];
    }
    int& narrowest = items[item_of[i]].narrowest;
    narrowest = std::max(narrowest, linears[i].narrowest);
  }
  for (Item& item : items) {
    for (std::size_t choice = kChoices - 1; choice-- > 0;) {
      if (kWidths[choice] >= item.narrowest) continue;
      item.sensitivity[choice] = item.sensitivity[choice + 1];
      item.memory[choice] = item.memory[choice + 1];
    }
  }
  return items;
}

// Items in the order of their first linears.
std::vector<std::size_t> number_items(std::size_t linears, const std::vector<int>& tie) {
  require(tie.empty() || tie.size() == linears, "a tie number for each linear");
  std::vector<std::size_t> item_of(linears);
  std::map<int, std::size_t> of_tie;
  for (std::size_t i = 0; i < linears; ++i) {
    item_of[i] = tie.empty() ? i : of_tie.emplace(tie[i], of_tie.size()).first->second;
  }
  return item_of;
}

// One sum of the items so far that no other beats in both; `before` is the one that it came from, without the last item.
struct Sum : Total {
  std::uint32_t before = 0;
  std::uint8_t choice = 0;
};

// Appends a further item to each sum. Sums ascend in memory and fall in sensitivity, before and after.
std::vector<Sum> append(const std::vector<Sum>& sums, const Item& item, std::size_t next_item,
                        std::int64_t most_memory, const LagrangianBound& bound) {
  std::array<std::size_t, kChoices> at = {};
  const auto candidate = [&](std::size_t choice) {
    const Sum& from = sums[at[choice]];
    return Sum{{from.sensitivity + item.sensitivity[choice], from.memory + item.memory[choice]},
               static_cast<std::uint32_t>(at[choice]),
               static_cast<std::uint8_t>(choice)};
  };
  const auto before = [](const Sum& a, const Sum& b) {
    return a.memory != b.memory ? a.memory < b.memory : a.sensitivity < b.sensitivity;
  };
  std::vector<Sum> next;
  double least = std::numeric_limits<double>::infinity();
  while (true) {
    Sum first;
    bool found = false;
    for (std::size_t choice = 0; choice < kChoices; ++choice) {
      if (at[choice] == sums.size()) continue;
      const Sum mine = candidate(choice);
      if (!found || before(mine, first)) first = mine;
      found = true;
    }
    if (!found || first.memory > most_memory) return next;
    ++at[first.choice];
    if (first.sensitivity >= least || bound.excludes(first, next_item)) continue;
    least = first.sensitivity;
    next.push_back(first);
  }
}

}  // namespace

BitAllocation allocate_bits(const std::vector<WidthCosts>& linears, const std::vector<int>& tie,
                            std::int64_t budget) {
  const std::vector<std::size_t> item_of = number_items(linears.size(), tie);
  const std::vector<Item> items = items_of(linears, item_of);
  std::int64_t least_rest = 0;  // memory of the items still to come
  for (const Item& item : items) least_rest += item.least_memory();
  if (least_rest > budget) {
    throw UnquantizableError(fmt::format(
        "the linears take at least {} bits of memory, and the budget is {}", least_rest, budget));
  }
  const LagrangianBound bound(items, budget);
  std::vector<std::vector<Sum>> sums(items.size() + 1);
  sums[0].resize(1);
  for (std::size_t i = 0; i < items.size(); ++i) {
    least_rest -= items[i].least_memory();
    sums[i + 1] = append(sums[i], items[i], i + 1, budget - least_rest, bound);
    require(!sums[i + 1].empty(), "the best choice is never excluded");
  }

  BitAllocation best;
  best.sensitivity = sums.back().back().sensitivity;  // they fall with more memory
  best.memory = sums.back().back().memory;
  std::vector<int> bits(items.size());
  std::size_t at = sums.back().size() - 1;
  for (std::size_t i = items.size(); i-- > 0;) {
    const Sum& sum = sums[i + 1][at];
    bits[i] = std::max(kWidths[sum.choice], items[i].narrowest);
    at = sum.before;
  }
  for (const std::size_t item : item_of) best.bits.push_back(bits[item]);
  return best;
}

std::int64_t budget_of(double average, std::int64_t weights) {
  // A decimal's own rounding is below a thousandth of a bit for all models of less than 10^12 weights.
  return static_cast<std::int64_t>(std::floor(average * static_cast<double>(weights) + 1e-3));
}

std::int64_t memory_of_codes(std::int64_t rows, std::int64_t cols, int bits) {
  return rows * cols * bits;
}

std::int64_t memory_with_grids(std::int64_t rows, std::int64_t cols, int bits,
                               std::int64_t group_size) {
  const std::int64_t groups = group_size == -1 ? 1 : (cols + group_size - 1) / group_size;
  return memory_of_codes(rows, cols, bits) + rows * groups * (16 + bits);
}

}  // namespace roundhouse
