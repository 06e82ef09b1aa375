#include "model/tokenizer/split.h"

#include <algorithm>

#include "base/error.h"

namespace roundhouse {

Behavior behavior_of(const nlohmann::json& name, const std::string& where) {
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Contiguous") return Behavior::kContiguous;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  throw InputError(where + "behavior: not one of Isolated, Removed, Contiguous, " +
                   "MergedWithPrevious, MergedWithNext");
}

void append_parts(const std::vector<Stretch>& stretches, Behavior behavior,
                  std::vector<Words::Range>& parts) {
  const std::size_t before = parts.size();
  const auto own = [&](const Stretch& stretch) { parts.push_back({stretch.begin, stretch.end}); };
  bool previous = false;
  switch (behavior) {
    case Behavior::kIsolated:
      std::ranges::for_each(stretches, own);
      break;
    case Behavior::kRemoved:
      for (const Stretch& stretch : stretches) {
        if (!stretch.match) own(stretch);
      }
      break;
    case Behavior::kContiguous:
    case Behavior::kMergedWithPrevious:
      for (const Stretch& stretch : stretches) {
        const bool joins = behavior == Behavior::kContiguous ? stretch.match == previous
                                                             : stretch.match && !previous;
        if (joins && parts.size() > before) {
          parts.back().end = stretch.end;
        } else {
          own(stretch);
        }
        previous = stretch.match;
      }
      break;
    case Behavior::kMergedWithNext:
      for (auto at = stretches.rbegin(); at != stretches.rend(); ++at) {
        if (at->match && !previous && parts.size() > before) {
          parts.back().begin = at->begin;
        } else {
          own(*at);
        }
        previous = at->match;
      }
      std::reverse(parts.begin() + static_cast<std::ptrdiff_t>(before), parts.end());
      break;
  }
  const auto kept = parts.begin() + static_cast<std::ptrdiff_t>(before);
  parts.erase(std::remove_if(kept, parts.end(),
                             [](const Words::Range& part) { return part.begin == part.end; }),
              parts.end());
}

}  // namespace roundhouse
