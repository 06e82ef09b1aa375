#include "comm/tree_sum.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <utility>

#include "base/error.h"

namespace roundhouse {
namespace {

// Where the node over [begin, end) splits; end - begin > 1.
int split_of(int begin, int end) {
  return begin + static_cast<int>(std::bit_floor(static_cast<unsigned>(end - begin - 1)));
}

// Whether [begin, middle) and [middle, end) are the two children of one node of the tree over [0,
// parts).
bool are_siblings(int begin, int middle, int end, int parts) {
  int node_begin = 0, node_end = parts;
  while (node_end - node_begin > 1) {
    const int split = split_of(node_begin, node_end);
    if (split == middle) return node_begin == begin && node_end == end;
    (middle < split ? node_end : node_begin) = split;
  }
  return false;
}

// Appends what covers the parts from nodes.back() on, then joins the two last as long as they are
// siblings: joining left to right like this reaches every node of the tree that lies inside the
// parts that were pushed.
template <class Nodes, class Join>
void push(Nodes& nodes, typename Nodes::value_type node, int parts, const Join& join) {
  nodes.push_back(std::move(node));
  while (nodes.size() > 1) {
    auto& left = nodes[nodes.size() - 2];
    auto& right = nodes.back();
    if (!are_siblings(left.begin, right.begin, right.end, parts)) return;
    join(left, right);
    left.end = right.end;
    nodes.pop_back();
  }
}

// The subtrees that a rank holding `run` is left with: what every rank knows of every other without
// a message.
std::vector<PartRange> subtrees_of(PartRange run, int parts) {
  std::vector<PartRange> nodes;
  for (int part = run.begin; part < run.end; ++part) {
    push(nodes, PartRange{part, part + 1}, parts, [](const PartRange&, const PartRange&) {});
  }
  return nodes;
}

}  // namespace

PartRange parts_of_rank(int parts, int rank, int ranks) {
  require(parts >= 0 && rank >= 0 && rank < ranks, "parts_of_rank: no such rank");
  const int each = parts / ranks, longer = parts % ranks;  // the first `longer` ranks have one more
  const int begin = rank * each + std::min(rank, longer);
  return {begin, begin + each + (rank < longer ? 1 : 0)};
}

int rank_of_part(int parts, int part, int ranks) {
  require(part >= 0 && part < parts && ranks > 0, "rank_of_part: no such part");
  const int each = parts / ranks, longer = parts % ranks;
  const int in_longer = longer * (each + 1);
  return part < in_longer ? part / (each + 1) : longer + (part - in_longer) / each;
}

int partial_sums_of_rank(int parts, int rank, int ranks) {
  return static_cast<int>(subtrees_of(parts_of_rank(parts, rank, ranks), parts).size());
}

int most_partial_sums(int parts, int rank, int ranks, int added_at_once) {
  const PartRange run = parts_of_rank(parts, rank, ranks);
  int most = 0;
  for (int end = run.begin; end < run.end; ++end) {
    int alive = 1;  // the one that comes
    for (const PartRange& node : subtrees_of({run.begin, end}, parts))
      alive += node.end - node.begin < added_at_once ? node.end - node.begin : 1;
    most = std::max(most, alive);
  }
  return most;
}

void Summand::add_up(std::span<Summand* const> terms, bool onto) {
  require(!terms.empty() && terms.size() <= 4 && (onto || terms.front() == this),
          "a sum of too many terms at once");
  if (terms.size() > 1) terms[0]->add(*terms[1]);
  if (terms.size() > 3) terms[2]->add(*terms[3]);
  if (terms.size() > 2) terms[0]->add(*terms[2]);
  if (onto) add(*terms[0]);
}

// Its sum, or its leaves, which are still to be added.
struct TreeSum::Node {
  int begin;
  int end;
  std::vector<std::unique_ptr<Summand>> terms;

  Node(int first, int behind, std::unique_ptr<Summand> value) : begin(first), end(behind) {
    terms.push_back(std::move(value));
  }
  bool is_of_leaves() const { return std::ssize(terms) == end - begin; }
  std::vector<Summand*> all() const {
    std::vector<Summand*> all;
    for (const auto& term : terms) all.push_back(term.get());
    return all;
  }
  Summand& add_up() {
    if (terms.size() > 1) terms.front()->add_up(all(), /*onto=*/false);
    terms.resize(1);
    return *terms.front();
  }
};

TreeSum::TreeSum(Transport& team, int parts, std::function<std::unique_ptr<Summand>()> make,
                 std::function<void()> settle, int added_at_once)
    : team_(team),
      parts_(parts),
      make_(std::move(make)),
      settle_(std::move(settle)),
      added_at_once_(added_at_once) {
  require(parts > 0, "a tree sum needs a part");
  require(added_at_once >= 1 && added_at_once <= 4, "a tree sum adds up to four at once");
}

TreeSum::TreeSum(TreeSum&&) noexcept = default;
TreeSum::~TreeSum() = default;

// Leaves wait for each other: neighbours within a subtree of few have the tree's shape by their number alone.
void TreeSum::push_node(std::vector<Node>& nodes, Node node) const {
  push(nodes, std::move(node), parts_, [&](Node& left, Node& right) {
    const bool wait =
        left.is_of_leaves() && right.is_of_leaves() && right.end - left.begin <= added_at_once_;
    if (wait) {
      std::ranges::move(right.terms, std::back_inserter(left.terms));
    } else {
      left.add_up().add_up(right.all(), /*onto=*/true);
    }
  });
  if (std::ssize(nodes.back().terms) == added_at_once_) nodes.back().add_up();
}

void TreeSum::add(int part, std::unique_ptr<Summand> value) {
  const PartRange mine = parts_of_rank(parts_, team_.rank(), team_.size());
  require(part == (nodes_.empty() ? mine.begin : nodes_.back().end) && part < mine.end,
          "a part of a tree sum is out of order or belongs to another rank");
  push_node(nodes_, Node(part, part + 1, std::move(value)));
}

std::vector<TreeSum::Node> TreeSum::take_nodes() {
  const PartRange mine = parts_of_rank(parts_, team_.rank(), team_.size());
  require((nodes_.empty() ? mine.begin : nodes_.back().end) == mine.end,
          "tree sum: a part of this rank is missing");
  return std::exchange(nodes_, {});
}

std::unique_ptr<Summand> TreeSum::finish(int owner) {
  const int rank = team_.rank(), size = team_.size();
  require(owner >= 0 && owner < size, "tree sum: no such owner");
  std::vector<Node> held = take_nodes();

  // One call a message on both sides; senders wait their turn at the owner, which waits for nobody else.
  if (rank != owner) {
    for (Node& node : held) node.add_up();
    settle_();
    std::vector<std::unique_ptr<Ticket>> tickets;
    for (Node& node : held) {
      const Send send{node.terms.front()->bytes(), owner};
      tickets.push_back(team_.start({&send, 1}, {}));
    }
    for (const auto& ticket : tickets) ticket->wait();
    return nullptr;
  }

  // Left to right over all ranks, so that sums are joined, and freed, as early as they can be.
  std::vector<Node> nodes;
  for (int from = 0; from < size; ++from) {
    if (from == owner) {
      for (Node& node : held) push_node(nodes, std::move(node));
      continue;
    }
    for (const PartRange& subtree : subtrees_of(parts_of_rank(parts_, from, size), parts_)) {
      auto value = make_();
      settle_();
      const Receive receive{value->bytes(), from};
      team_.start({}, {&receive, 1})->wait();
      push_node(nodes, Node(subtree.begin, subtree.end, std::move(value)));
    }
  }
  nodes.front().add_up();
  return std::move(nodes.front().terms.front());
}

std::vector<std::unique_ptr<Summand>> TreeSum::finish_all(std::span<TreeSum> sums,
                                                          std::span<const int> owners) {
  require(sums.size() == owners.size(), "tree sums: an owner each");
  std::vector<std::unique_ptr<Summand>> results(sums.size());
  if (sums.empty()) return results;
  Transport& team = sums.front().team_;
  const int rank = team.rank(), size = team.size();

  std::vector<std::vector<Node>> held(sums.size());  // of this rank; at an owner, of all ranks
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (std::size_t i = 0; i < sums.size(); ++i) {
    require(owners[i] >= 0 && owners[i] < size, "tree sum: no such owner");
    std::vector<Node> mine = sums[i].take_nodes();
    for (int from = 0; from < size && rank == owners[i]; ++from) {
      if (from == rank) {
        for (Node& node : mine) held[i].push_back(std::move(node));
        continue;
      }
      const int parts = sums[i].parts_;
      for (const PartRange& subtree : subtrees_of(parts_of_rank(parts, from, size), parts)) {
        held[i].push_back(Node(subtree.begin, subtree.end, sums[i].make_()));
        receives.push_back({held[i].back().terms.front()->bytes(), from});
      }
    }
    if (rank == owners[i]) continue;
    for (Node& node : mine) sends.push_back({node.add_up().bytes(), owners[i]});
    held[i] = std::move(mine);
  }
  if (size > 1) {
    sums.front().settle_();
    team.start(sends, receives)->wait();
  }

  for (std::size_t i = 0; i < sums.size(); ++i) {
    if (rank != owners[i]) continue;
    std::vector<Node> nodes;
    for (Node& node : held[i]) sums[i].push_node(nodes, std::move(node));
    nodes.front().add_up();
    results[i] = std::move(nodes.front().terms.front());
  }
  return results;
}

}  // namespace roundhouse
