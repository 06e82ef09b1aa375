#include "model/tokenizer/byte_pair_merges.h"

namespace roundhouse {
namespace {

constexpr std::size_t kShortWord = 64;  // symbols

}  // namespace

bool BytePairMerges::add(std::int32_t left, std::int32_t right, std::int32_t merged) {
  if (4 * (static_cast<std::size_t>(count_) + 1) > 3 * table_.size()) {
    const std::vector<Entry> old = std::move(table_);
    table_.assign(old.empty() ? 16 : 2 * old.size(), {});
    shift_ = old.empty() ? 60 : shift_ - 1;
    filter_.reset(table_.size());
    for (const Entry& entry : old) {
      if (entry.pair == kNoPair) continue;
      table_[place_of(entry.pair)] = entry;
      filter_.add(entry.pair * kGoldenRatio);
    }
  }
  const std::uint64_t pair = pair_of(left, right);
  Entry& place = table_[place_of(pair)];
  if (place.pair == pair) return false;
  place = {pair, {count_++, merged}};
  filter_.add(pair * kGoldenRatio);
  return true;
}

void BytePairMerges::set_bytes(const std::array<std::int32_t, 256>& ids) {
  bytes_ = ids;
  of_bytes_.clear();
  for (const std::int32_t left : ids) {
    for (const std::int32_t right : ids)
      of_bytes_.push_back(left < 0 || right < 0 ? Merge{} : find(pair_of(left, right)));
  }
}

std::uint64_t BytePairMerges::pair_at(const std::vector<Work::Symbol>& symbols, int place) {
  const Work::Symbol& left = symbols[place];
  return pair_of(left.id, symbols[left.next].id);
}

void BytePairMerges::consider(Work& work, int place) const {
  if (place < 0 || work.symbols_[place].next < 0) return;
  const std::uint64_t pair = pair_at(work.symbols_, place);
  const Merge merge = find(pair);
  if (merge.rank != kNoRank) work.candidates_.push({merge.rank, place, pair, merge.id});
}

// work.merges_ are those of the neighbours in work.ids.
void BytePairMerges::merge_short(Work& work) const {
  std::vector<std::int32_t>& ids = work.ids;
  std::vector<Merge>& merges = work.merges_;
  for (;;) {
    Merge best;
    std::size_t at = 0;
    for (std::size_t i = 0; i < merges.size(); ++i) {
      if (merges[i].rank >= best.rank) continue;
      best = merges[i];
      at = i;
    }
    if (best.rank == kNoRank) return;
    ids[at] = best.id;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    merges.erase(merges.begin() + static_cast<std::ptrdiff_t>(at));
    if (at > 0) merges[at - 1] = find(pair_of(ids[at - 1], ids[at]));
    if (at < merges.size()) merges[at] = find(pair_of(ids[at], ids[at + 1]));
  }
}

void BytePairMerges::merge_long(Work& work) const {
  const int n = static_cast<int>(work.ids.size());
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

void BytePairMerges::merge(Work& work) const {
  const std::vector<std::int32_t>& ids = work.ids;
  if (ids.size() < 2) return;
  if (ids.size() > kShortWord) return merge_long(work);
  work.merges_.clear();
  for (std::size_t i = 0; i + 1 < ids.size(); ++i)
    work.merges_.push_back(find(pair_of(ids[i], ids[i + 1])));
  merge_short(work);
}

void BytePairMerges::merge_bytes(std::string_view bytes, Work& work) const {
  const auto byte = [&](std::size_t i) {
    return std::size_t{static_cast<unsigned char>(bytes[i])};
  };
  work.ids.clear();
  for (std::size_t i = 0; i < bytes.size(); ++i) work.ids.push_back(bytes_[byte(i)]);
  if (bytes.size() < 2) return;
  if (bytes.size() > kShortWord) return merge_long(work);
  work.merges_.clear();
  for (std::size_t i = 0; i + 1 < bytes.size(); ++i)
    work.merges_.push_back(of_bytes_[byte(i) * 256 + byte(i + 1)]);
  merge_short(work);
}

}  // namespace roundhouse
