#include "comm/tree_sum.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/random.h"
#include "comm/launcher.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

constexpr std::size_t kCount = 257;

int alive = 0, most_alive = 0;  // summands of this process

class Floats final : public Summand {
 public:
  explicit Floats(std::vector<float> initial = std::vector<float>(kCount, std::nanf("")))
      : values(std::move(initial)) {
    most_alive = std::max(most_alive, ++alive);
  }
  ~Floats() override { --alive; }
  std::span<std::byte> bytes() override { return std::as_writable_bytes(std::span(values)); }
  void add(Summand& other) override {
    const auto& more = dynamic_cast<Floats&>(other).values;
    for (std::size_t i = 0; i < values.size(); ++i) values[i] += more[i];
  }

  std::vector<float> values;
};

// Magnitudes over 2^-12..2^12 and both signs: nearly every change of order shows in some element.
std::vector<float> part_values(int part) {
  Random random(static_cast<std::uint64_t>(1000 + part));
  std::vector<float> values(kCount);
  for (float& v : values) {
    v = static_cast<float>(
        std::ldexp(random.uniform() - 0.5, static_cast<int>(random.below(25)) - 12));
  }
  return values;
}

std::vector<float> plus(std::vector<float> a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// The header's definition, word for word.
std::vector<float> sequential_tree(int begin, int end) {
  if (end - begin == 1) return part_values(begin);
  int left = 1;
  while (2 * left < end - begin) left *= 2;
  return plus(sequential_tree(begin, begin + left), sequential_tree(begin + left, end));
}

std::vector<std::uint32_t> bits(const std::vector<float>& values) {
  std::vector<std::uint32_t> result;
  for (const float v : values) result.push_back(std::bit_cast<std::uint32_t>(v));
  return result;
}

std::unique_ptr<Summand> distributed(Communicator& team, int parts, int owner,
                                     int added_at_once = 1) {
  TreeSum sum(
      team, parts, [] { return std::make_unique<Floats>(); }, [] {}, added_at_once);
  const PartRange mine = parts_of_rank(parts, team.rank(), team.size());
  for (int part = mine.begin; part < mine.end; ++part) {
    sum.add(part, std::make_unique<Floats>(part_values(part)));
  }
  return sum.finish(owner);
}

TEST(TreeSumTest, HasTheBitsOfTheSequentialTreeOnAnyNumberOfRanks) {
  Communicator& world = test_world();
  for (int parts = 1; parts <= 17; ++parts) {
    const auto want = bits(sequential_tree(0, parts));
    const auto alone = make_local_communicator();
    for (int at_once = 1; at_once <= 4; ++at_once) {
      for (int owner = 0; owner < world.size(); ++owner) {
        const auto got = distributed(world, parts, owner, at_once);
        ASSERT_EQ(got != nullptr, world.rank() == owner);
        if (got) {
          EXPECT_EQ(bits(dynamic_cast<Floats&>(*got).values), want)
              << parts << " parts, owner " << owner << ", " << at_once << " at once";
        }
      }
      EXPECT_EQ(bits(dynamic_cast<Floats&>(*distributed(*alone, parts, 0, at_once)).values), want)
          << parts << " parts, alone, " << at_once << " at once";
    }
  }
}

TEST(TreeSumTest, SeveralSumsFinishTogetherWithTheSameBits) {
  Communicator& world = test_world();
  for (const int parts : {1, 4, 7, 8}) {
    std::vector<TreeSum> sums;
    std::vector<int> owners;
    const PartRange mine = parts_of_rank(parts, world.rank(), world.size());
    for (int i = 0; i < 5; ++i) {  // sum i is that of values i + 1 times as large
      sums.emplace_back(world, parts, [] { return std::make_unique<Floats>(); });
      owners.push_back((2 * i + 1) % world.size());
      for (int part = mine.begin; part < mine.end; ++part) {
        std::vector<float> values = part_values(part);
        for (float& value : values) value *= static_cast<float>(1 << i);
        sums.back().add(part, std::make_unique<Floats>(values));
      }
    }
    const auto results = TreeSum::finish_all(sums, owners);
    ASSERT_EQ(results.size(), sums.size());
    for (int i = 0; i < 5; ++i) {
      const auto at = static_cast<std::size_t>(i);
      ASSERT_EQ(results[at] != nullptr, world.rank() == owners[at]);
      if (!results[at]) continue;
      std::vector<float> want = sequential_tree(0, parts);
      for (float& value : want) value *= static_cast<float>(1 << i);  // a power of two: exact
      EXPECT_EQ(bits(dynamic_cast<Floats&>(*results[at]).values), bits(want)) << parts << ", " << i;
    }
  }
}

TEST(TreeSumTest, TheseNumbersTellTheTreeFromASumLeftToRight) {
  for (int parts = 1; parts <= 17; ++parts) {
    std::vector<float> left_to_right = part_values(0);
    for (int part = 1; part < parts; ++part) left_to_right = plus(left_to_right, part_values(part));
    EXPECT_EQ(bits(left_to_right) == bits(sequential_tree(0, parts)), parts <= 3)
        << parts << " parts";
  }
}

// As many as most_partial_sums() says, where nobody sends; at four at once, so many more that fewer additions read and write them.
TEST(TreeSumTest, AddedAtOnceTheyAreReadAndWrittenLessOften) {
  int added = 0, read = 0;
  class Counted final : public Summand {
   public:
    Counted(int& additions, int& reads) : additions_(additions), reads_(reads) {}
    std::span<std::byte> bytes() override { return {}; }
    void add(Summand&) override { FAIL(); }
    void add_up(std::span<Summand* const> terms, bool onto) override {
      EXPECT_EQ(terms.front() == this, !onto);
      ++additions_;
      reads_ += static_cast<int>(terms.size()) + (onto ? 1 : 0);
    }

   private:
    Floats counted_{{}};
    int& additions_;
    int& reads_;
  };
  const auto alone = make_local_communicator();
  for (const auto& [parts, at_once, additions, reads, most] :
       std::vector<std::array<int, 5>>{{8, 1, 7, 14, 4},
                                       {8, 4, 2, 9, 5},
                                       {16, 4, 5, 20, 6},
                                       {7, 4, 2, 8, 4},
                                       {3, 4, 1, 3, 3},
                                       {2, 4, 1, 2, 2},
                                       {1, 4, 0, 0, 1}}) {
    added = read = 0;
    most_alive = alive;
    const int before = alive;
    TreeSum sum(
        *alone, parts, [] { return nullptr; }, [] {}, at_once);
    for (int part = 0; part < parts; ++part) sum.add(part, std::make_unique<Counted>(added, read));
    EXPECT_NE(sum.finish(0), nullptr);
    EXPECT_EQ(added, additions) << parts << " parts, " << at_once << " at once";
    EXPECT_EQ(read, reads) << parts << " parts, " << at_once << " at once";
    EXPECT_EQ(most_alive - before, most) << parts << " parts, " << at_once << " at once";
    EXPECT_EQ(most_partial_sums(parts, 0, 1, at_once), most);
  }
}

TEST(TreeSumTest, FewPartialSumsAreAlive) {
  Communicator& world = test_world();
  for (int parts = 1; parts <= 64; ++parts) {
    most_alive = alive;
    const int before = alive;
    distributed(world, parts, 0);
    const int levels = std::bit_width(static_cast<unsigned>(parts - 1));
    const int allowed = world.rank() == 0 ? std::max(levels + 3, 2 * levels + 1) : levels + 3;
    EXPECT_LE(most_alive - before, allowed) << parts << " parts";
  }
}

TEST(TreeSumTest, CanBeUsedAgainAfterFinish) {
  Communicator& world = test_world();
  TreeSum sum(world, 5, [] { return std::make_unique<Floats>(); });
  const PartRange mine = parts_of_rank(5, world.rank(), world.size());
  for (int round = 0; round < 2; ++round) {
    for (int part = mine.begin; part < mine.end; ++part)
      sum.add(part, std::make_unique<Floats>(part_values(part)));
    const auto got = sum.finish(0);
    if (got) {
      EXPECT_EQ(bits(dynamic_cast<Floats&>(*got).values), bits(sequential_tree(0, 5)));
    }
  }
}

TEST(TreeSumTest, PartsOutOfOrderOrMissingAreErrors) {
  const auto alone = make_local_communicator();
  TreeSum sum(*alone, 3, [] { return std::make_unique<Floats>(); });
  EXPECT_THROW(sum.add(1, std::make_unique<Floats>()), Error);
  sum.add(0, std::make_unique<Floats>());
  EXPECT_THROW(sum.add(0, std::make_unique<Floats>()), Error);
  EXPECT_THROW(sum.finish(0), Error);
}

TEST(PartsTest, RunsAreConsecutiveEvenAndAgreeWithTheirInverse) {
  for (int parts = 0; parts <= 40; ++parts) {
    for (int ranks = 1; ranks <= 9; ++ranks) {
      int expected = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const PartRange run = parts_of_rank(parts, rank, ranks);
        EXPECT_EQ(run.begin, expected);
        EXPECT_GE(run.end - run.begin, parts / ranks);
        EXPECT_LE(run.end - run.begin, (parts + ranks - 1) / ranks);
        for (int part = run.begin; part < run.end; ++part)
          EXPECT_EQ(rank_of_part(parts, part, ranks), rank);
        expected = run.end;
      }
      EXPECT_EQ(expected, parts);
    }
  }
}

TEST(PartsTest, RanksBeyondThePartsAreEmpty) {
  EXPECT_EQ(parts_of_rank(2, 1, 4).end, 2);
  EXPECT_EQ(parts_of_rank(2, 2, 4).begin, parts_of_rank(2, 2, 4).end);
  EXPECT_EQ(parts_of_rank(2, 3, 4).begin, parts_of_rank(2, 3, 4).end);
}

// As on a device: what is made or added to is only queued, and messages know nothing of the queue.
class QueuelessTransport final : public Transport {
 public:
  QueuelessTransport(Communicator& ranks, const bool& settled) : ranks_(ranks), settled_(settled) {}
  int rank() const override { return ranks_.rank(); }
  int size() const override { return ranks_.size(); }
  std::unique_ptr<Ticket> start(std::span<const Send> sends,
                                std::span<const Receive> receives) override {
    EXPECT_TRUE(settled_ || (sends.empty() && receives.empty()));
    return ranks_.start(sends, receives);
  }
  void broadcast(std::span<std::byte>, int) override { FAIL(); }

 private:
  Communicator& ranks_;
  const bool& settled_;
};

TEST(TreeSumTest, SettlesWhatIsQueuedBeforeItStartsMessages) {
  Communicator& world = test_world();
  bool settled = false;
  class Queued final : public Summand {
   public:
    Queued(std::vector<float> values, bool& done) : floats_(std::move(values)), settled_(done) {
      settled_ = false;
    }
    std::span<std::byte> bytes() override { return floats_.bytes(); }
    void add(Summand& other) override {
      floats_.add(dynamic_cast<Queued&>(other).floats_);
      settled_ = false;
    }

   private:
    Floats floats_;
    bool& settled_;
  };
  QueuelessTransport team(world, settled);
  constexpr int kParts = 7;
  const auto make_sum = [&] {
    TreeSum sum(
        team, kParts, [&] { return std::make_unique<Queued>(std::vector<float>(kCount), settled); },
        [&] { settled = true; });
    const PartRange mine = parts_of_rank(kParts, world.rank(), world.size());
    for (int part = mine.begin; part < mine.end; ++part) {
      sum.add(part, std::make_unique<Queued>(part_values(part), settled));
    }
    return sum;
  };
  for (int owner = 0; owner < world.size(); ++owner) {
    EXPECT_EQ(make_sum().finish(owner) != nullptr, world.rank() == owner);
    std::vector<TreeSum> sums;
    sums.push_back(make_sum());
    sums.push_back(make_sum());
    const std::vector<int> owners{owner, (owner + 1) % world.size()};
    EXPECT_EQ(TreeSum::finish_all(sums, owners)[0] != nullptr, world.rank() == owner);
  }
}

}  // namespace
}  // namespace roundhouse
