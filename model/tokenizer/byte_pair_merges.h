// Byte-pair merging (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"): of all neighbours
// that a merge is known for, the pair of the lowest rank is replaced by one symbol, of equal ranks the leftmost, until there is
// none. O(n log n) for n symbols; short words go by looking at all of them, which is faster for these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

namespace roundhouse {

class BytePairMerges {
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};
  struct Merge {
    std::uint64_t pair = kNoPair;
    std::int32_t rank = 0;
    std::int32_t id = 0;  // of what both become
  };

 public:
  // The next rank. False if the pair has one.
  bool add(std::int32_t left, std::int32_t right, std::int32_t merged);

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
    std::vector<const Merge*> merges_;  // of short words: of each symbol and the next
  };
  void merge(Work& work) const;

 private:
  static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  static std::uint64_t pair_at(const std::vector<Work::Symbol>& symbols, int place);
  void consider(Work& work, int place) const;
  void merge_short(Work& work) const;
  // Of these neighbours, or nullptr.
  const Merge* find(std::int32_t left, std::int32_t right) const {
    return find(pair_of(left, right));
  }
  const Merge* find(std::uint64_t pair) const {
    if (table_.empty()) return nullptr;
    const Merge& merge = table_[place_of(pair)];
    return merge.pair == pair ? &merge : nullptr;
  }
  // Where the pair is, or would be.
  std::size_t place_of(std::uint64_t pair) const {
    // Fibonacci hashing, by the upper bits.
    std::size_t at = (pair * 0x9e3779b97f4a7c15U) >> shift_;
    while (table_[at].pair != pair && table_[at].pair != kNoPair)
      at = (at + 1) & (table_.size() - 1);
    return at;
  }

  // At most half full, a power of two: half of the lookups are for pairs that no merge is known for.
  std::vector<Merge> table_;
  int shift_ = 64;
  std::int32_t count_ = 0;
};

}  // namespace roundhouse
