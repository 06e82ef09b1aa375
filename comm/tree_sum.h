// A sum over numbered parts with one fixed shape of additions, whoever holds the parts.
//
// Parts 0..n-1 (calibration shards) are the leaves of a binary tree: a node over [a, b) with b - a > 1 splits at
// a + the largest power of two below b - a. Each rank holds a run of consecutive parts, ranks in order. A rank adds
// what it can (whole subtrees), sends the roots of its subtrees to the owner, and the owner finishes the tree:
//
//   n = 6, three ranks with parts {0,1} {2,3} {4,5}        n = 6, two ranks {0,1,2} {3,4,5}, owner 0
//     rank 0: (0+1)      rank 1: (2+3)   rank 2: (4+5)       rank 0: (0+1), 2     rank 1: 3, (4+5)
//     owner:  ((0+1)+(2+3)) + (4+5)                          owner: ((0+1)+(2+3)) + (4+5)      the same bits
//
// At most log2(n) + 3 partial sums are alive on a rank, at the owner 2 log2(n) + 1 while it finishes. A sum in memory is read and written
// at each addition: where that counts, up to four leaves of a subtree are added at once, for two more that are alive.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "comm/communicator.h"

namespace roundhouse {

// A run of parts [begin, end) for each rank; sizes differ by at most one; empty for ranks beyond the parts.
struct PartRange {
  int begin = 0;
  int end = 0;
};
PartRange parts_of_rank(int parts, int rank, int ranks);
int rank_of_part(int parts, int part, int ranks);

// How many partial sums a rank is left with once it has added what it can, and how many it has at the same time at most until
// then.
int partial_sums_of_rank(int parts, int rank, int ranks);
int most_partial_sums(int parts, int rank, int ranks, int added_at_once = 1);

// What the tree needs of a partial sum: its memory, of the transport's kind.
class Summand {
 public:
  virtual ~Summand() = default;
  virtual std::span<std::byte> bytes() = 0;
  virtual void add(Summand& other) = 0;  // this += other, element by element
  // Four at most: this = ((0 + 1) + (2 + 3)), or as much of that as there is, this being the first; or, `onto`, this += that. What the
  // others hold is void then.
  virtual void add_up(std::span<Summand* const> terms, bool onto);
};

class TreeSum {
 public:
  // make() gives an uninitialised summand of the common size. settle() is called before messages are started: after it nothing
  // may be queued for the memory of summands, nor for what it was used for before (Memory::sync(), where there is a queue).
  // `added_at_once`: 1, or up to 4 leaves. Collective over `team` only in finish().
  TreeSum(
      Transport& team, int parts, std::function<std::unique_ptr<Summand>()> make,
      std::function<void()> settle = [] {}, int added_at_once = 1);
  TreeSum(TreeSum&&) noexcept;
  ~TreeSum();

  // Parts of this rank, in order, each once.
  void add(int part, std::unique_ptr<Summand> value);

  // Collective: the whole sum at `owner`, nullptr elsewhere. Every part must have been added by the rank that
  // parts_of_rank() names.
  std::unique_ptr<Summand> finish(int owner);
  // Collective: the same for several sums of one team, sum i at owners[i], in one group of messages, so that owners receive
  // at the same time. An owner holds all partial sums of others at once.
  static std::vector<std::unique_ptr<Summand>> finish_all(std::span<TreeSum> sums,
                                                          std::span<const int> owners);

 private:
  struct Node;
  void push_node(std::vector<Node>& nodes, Node node) const;
  std::vector<Node> take_nodes();  // throws unless every part of this rank was added
  Transport& team_;
  int parts_;
  std::function<std::unique_ptr<Summand>()> make_;
  std::function<void()> settle_;
  int added_at_once_;
  std::vector<Node> nodes_;  // complete subtrees of this rank's run, left to right
};

}  // namespace roundhouse
