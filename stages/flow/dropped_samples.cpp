#include "stages/flow/dropped_samples.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/numerical_error.h"
#include "model/block/model_units.h"

namespace roundhouse {

std::int64_t settle_dropped(const BlockSite& site, const std::string& linears,
                            const std::vector<std::int64_t>& dropped_here,
                            nlohmann::json& block_record) {
  std::vector<std::int64_t> dropped;
  for (const std::vector<std::byte>& message :
       site.team.all_gather(std::as_bytes(std::span(dropped_here)))) {
    std::vector<std::int64_t> theirs(message.size() / sizeof(std::int64_t));
    std::ranges::copy(message, std::as_writable_bytes(std::span(theirs)).begin());
    dropped.insert(dropped.end(), theirs.begin(), theirs.end());
  }
  const std::int64_t samples = site.samples->count();
  const auto count = static_cast<std::int64_t>(dropped.size());
  if (count == 0) return samples;

  const std::string what =
      fmt::format("{}: {} of {} samples are not finite", linears, count, samples);
  if (10 * count > samples)
    throw UnquantizableError(what + "; more than a tenth cannot be left out");
  std::ranges::sort(dropped);
  block_record["dropped_samples"].push_back(
      {{"linears", linears}, {"count", count}, {"samples", dropped}});
  if (site.team.rank() == 0) {
    site.monitor.say(
        fmt::format("{}, {} and were left out", unit_name(site.block, site.decoder), what));
  }
  return samples - count;
}

}  // namespace roundhouse
