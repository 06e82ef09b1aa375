// Samples whose activations are not finite are left out of a method's statistics, and nobody is left to wonder: the block's
// record gets them under "dropped_samples", a list of {"linears", "count", "samples"}.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stages/flow/block_site.h"

namespace roundhouse {

// Calls visit(begin, end) for each run of sequences that are finite (finite[s] != 0), in order.
template <class Visit>
void for_each_finite_run(const std::vector<std::uint8_t>& finite, Visit visit) {
  const std::size_t n = finite.size();
  for (std::size_t s = 0; s < n;) {
    if (finite[s] == 0) {
      ++s;
      continue;
    }
    std::size_t end = s + 1;
    while (end < n && finite[end] != 0) ++end;
    visit(static_cast<std::int64_t>(s), static_cast<std::int64_t>(end));
    s = end;
  }
}

// Collective. `dropped`: samples that this rank left out; `linears`: what for, in messages. Says so, adds them to the block's
// record, and returns the number of samples that were used. Throws UnquantizableError on every rank if more than a
// tenth were left out.
std::int64_t settle_dropped(const BlockSite& site, const std::string& linears,
                            const std::vector<std::int64_t>& dropped, nlohmann::json& block_record);

}  // namespace roundhouse
