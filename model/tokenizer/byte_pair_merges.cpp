#include "model/tokenizer/byte_pair_merges.h"

namespace roundhouse {
namespace {

constexpr std::size_t kShortWord = 64;  // symbols

}  // namespace

bool BytePairMerges::add(std::int32_t left, std::int32_t right, std::int32_t merged) {
  if (2 * (static_cast<std::size_t>(count_) + 1) > table_.size()) {
    const std::vector<Merge> old = std::move(table_);
    table_.assign(old.empty() ? 16 : 2 * old.size(), {});
    shift_ = old.empty() ? 60 : shift_ - 1;
    for (const Merge& merge : old) {
      if (merge.pair != kNoPair) table_[place_of(merge.pair)] = merge;
    }
  }
  const std::uint64_t pair = pair_of(left, right);
  Merge& place = table_[place_of(pair)];
  if (place.pair == pair) return false;
  place = {pair, count_++, merged};
  return true;
}

std::uint64_t BytePairMerges::pair_at(const std::vector<Work::Symbol>& symbols, int place) {
  const Work::Symbol& left = symbols[place];
  return pair_of(left.id, symbols[left.next].id);
}

void BytePairMerges::consider(Work& work, int place) const {
  if (place < 0 || work.symbols_[place].next < 0) return;
  const std::uint64_t pair = pair_at(work.symbols_, place);
  if (const Merge* merge = find(pair)) work.candidates_.push({merge->rank, place, pair, merge->id});
}

void BytePairMerges::merge_short(Work& work) const {
  std::vector<std::int32_t>& ids = work.ids;
  std::vector<const Merge*>& merges = work.merges_;
  merges.clear();
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) merges.push_back(find(ids[i], ids[i + 1]));
  for (;;) {
    const Merge* best = nullptr;
    std::size_t at = 0;
    for (std::size_t i = 0; i < merges.size(); ++i) {
      if (merges[i] == nullptr || (best != nullptr && best->rank <= merges[i]->rank)) continue;
      best = merges[i];
      at = i;
    }
    if (best == nullptr) return;
    ids[at] = best->id;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    merges.erase(merges.begin() + static_cast<std::ptrdiff_t>(at));
    if (at > 0) merges[at - 1] = find(ids[at - 1], ids[at]);
    if (at < merges.size()) merges[at] = find(ids[at], ids[at + 1]);
  }
}

void BytePairMerges::merge(Work& work) const {
  const int n = static_cast<int>(work.ids.size());
  if (n < 2) return;
  if (work.ids.size() <= kShortWord) return merge_short(work);
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
