// Byte-pair merging (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"): of all neighbours
// that a merge is known for, the pair of the lowest rank is replaced by one symbol, of equal ranks the leftmost, until there is
// none. O(n log n) for n symbols.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

namespace roundhouse {

class BytePairMerges {
 public:
  // The next rank. False if the pair has one.
  bool add(std::int32_t left, std::int32_t right, std::int32_t merged) {
    const Merge merge{static_cast<std::int32_t>(merges_.size()), merged};
    return merges_.emplace(pair_of(left, right), merge).second;
  }

  // What merging needs besides: kept from word to word, for one thread.
  class Work {
   public:
    std::vector<std::int32_t> ids;  // of the symbols: in, and out

   private:
    friend class BytePairMerges;
    // Symbols in a list, from which merging takes some out.
    struct Symbol {
      std::int32_t id;
      int previous;  // -1: none
      int next;
    };
    // Two neighbours that could be merged; the lowest rank comes first, then the leftmost.
    struct Candidate {
      std::int32_t rank;
      int place;  // of the left one
      std::uint64_t pair;
      std::int32_t id;
      bool operator<(const Candidate& other) const {
        return std::pair(rank, place) > std::pair(other.rank, other.place);
      }
    };
    std::vector<Symbol> symbols_;
    std::priority_queue<Candidate> candidates_;
  };
  void merge(Work& work) const;

 private:
  struct Merge {
    std::int32_t rank;
    std::int32_t id;  // of what both become
  };
  static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  static std::uint64_t pair_at(const std::vector<Work::Symbol>& symbols, int place);
  void consider(Work& work, int place) const;

  std::unordered_map<std::uint64_t, Merge> merges_;
};

}  // namespace roundhouse
