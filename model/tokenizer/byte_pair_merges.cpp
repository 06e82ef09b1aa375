#include "model/tokenizer/byte_pair_merges.h"

namespace roundhouse {

std::uint64_t BytePairMerges::pair_at(const std::vector<Work::Symbol>& symbols, int place) {
  const Work::Symbol& left = symbols[place];
  return pair_of(left.id, symbols[left.next].id);
}

void BytePairMerges::consider(Work& work, int place) const {
  if (place < 0 || work.symbols_[place].next < 0) return;
  const std::uint64_t pair = pair_at(work.symbols_, place);
  const auto found = merges_.find(pair);
  if (found == merges_.end()) return;
  work.candidates_.push({found->second.rank, place, pair, found->second.id});
}

void BytePairMerges::merge(Work& work) const {
  const int n = static_cast<int>(work.ids.size());
  if (n < 2) return;
  work.symbols_.clear();
  for (int i = 0; i < n; ++i) work.symbols_.push_back({work.ids[i], i - 1, i + 1 < n ? i + 1 : -1});
  for (int i = 0; i < n; ++i) consider(work, i);
  while (!work.candidates_.empty()) {
    const Work::Candidate best = work.candidates_.top();
    work.candidates_.pop();
    Work::Symbol& left = work.symbols_[best.place];
    // One of the two may have been merged with another neighbour since.
    if (left.id < 0 || left.next < 0 || pair_at(work.symbols_, best.place) != best.pair) continue;
    Work::Symbol& right = work.symbols_[left.next];
    left.id = best.id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) work.symbols_[left.next].previous = best.place;
    consider(work, left.previous);
    consider(work, best.place);
  }
  work.ids.clear();
  for (int i = 0; i >= 0; i = work.symbols_[i].next) work.ids.push_back(work.symbols_[i].id);
}

}  // namespace roundhouse
