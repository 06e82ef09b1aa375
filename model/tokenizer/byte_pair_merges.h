// Byte-pair merging (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"): of all neighbours
// that a merge is known for, the pair of the lowest rank is replaced by one symbol, of equal ranks the leftmost, until there is
// none. O(n log n) for n symbols; short words go by looking at all of them, which is faster for these.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <queue>
#include <string_view>
#include <utility>
#include <vector>

#include "model/tokenizer/word_hash.h"

namespace roundhouse {

class BytePairMerges {
  static constexpr std::uint64_t kNoPair = ~std::uint64_t{0};
  static constexpr std::int32_t kNoRank = std::numeric_limits<std::int32_t>::max();
  // What a pair becomes.
  struct Merge {
    std::int32_t rank = kNoRank;
    std::int32_t id = 0;
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
    std::vector<Merge> merges_;  // of short words: of each symbol and the next
  };
  void merge(Work& work) const;

  // Symbols that stand for bytes, -1: none. Pairs of these, which are asked for most, are then looked up in a small table.
  // Precondition: all merges are there.
  void set_bytes(const std::array<std::int32_t, 256>& ids);
  // The same as merge() of the symbols of these bytes. Precondition: each has one.
  void merge_bytes(std::string_view bytes, Work& work) const;

 private:
  static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  static std::uint64_t pair_at(const std::vector<Work::Symbol>& symbols, int place);
  void consider(Work& work, int place) const;
  void merge_short(Work& work) const;
  void merge_long(Work& work) const;
  // Of these neighbours; kNoRank: there is none.
  Merge find(std::uint64_t pair) const {
    const std::uint64_t hash = pair * kGoldenRatio;
    if (table_.empty() || !filter_.may_contain(hash)) return {};
    return table_[place_of(pair)].merge;
  }
  // Where the pair is, or would be.
  std::size_t place_of(std::uint64_t pair) const {
    // Fibonacci hashing, by the upper bits.
    std::size_t at = (pair * kGoldenRatio) >> shift_;
    while (table_[at].pair != pair && table_[at].pair != kNoPair)
      at = (at + 1) & (table_.size() - 1);
    return at;
  }

  struct Entry {
    std::uint64_t pair = kNoPair;
    Merge merge;
  };
  // At most three quarters full, a power of two.
  std::vector<Entry> table_;
  HashFilter filter_;  // half of the lookups are for pairs that no merge is known for
  int shift_ = 64;
  std::int32_t count_ = 0;

  std::array<std::int32_t, 256> bytes_{};
  std::vector<Merge> of_bytes_;  // by the left one * 256 and the right one
};

}  // namespace roundhouse
