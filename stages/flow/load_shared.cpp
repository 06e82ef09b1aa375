#include "stages/flow/load_shared.h"

#include <algorithm>
#include <string>

#include "comm/together.h"

namespace roundhouse {
namespace {

constexpr std::size_t kDigits = 32;  // of a hash

// Those of all ranks, in their order.
std::vector<std::string> gather_hashes(Communicator& team, const std::vector<std::string>& mine) {
  std::string text;
  for (const std::string& hash : mine) text += hash;
  std::vector<std::string> all;
  for (const std::vector<std::byte>& of_rank : team.all_gather(std::as_bytes(std::span(text)))) {
    const std::string_view digits(reinterpret_cast<const char*>(of_rank.data()), of_rank.size());
    for (std::size_t at = 0; at < digits.size(); at += kDigits)
      all.emplace_back(digits.substr(at, kDigits));
  }
  return all;
}

void exchange_parts(const BlockSite& site, BlockWeights& weights) {
  const int rank = site.team.rank(), ranks = site.team.size();
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (int owner = 0; owner < ranks; ++owner) {
    for (const auto& [i, pieces] : pieces_of_part(site.decoder.linears(), {owner, ranks})) {
      Tensor& weight = weights.linears[i];
      const auto place = bytes_of_pieces(bytes_of(weight), size_of(weight.type()), pieces);
      if (owner != rank) {
        receives.push_back({place, owner});
        continue;
      }
      for (int to = 0; to < ranks; ++to)
        if (to != rank) sends.push_back({place, to});
    }
  }
  site.device_team.start(sends, receives)->wait();
}

}  // namespace

WeightPart part_read_by_rank(const Communicator& team, const Backend& backend) {
  if (backend.is_host_memory()) return {};
  return {team.rank(), team.size()};
}

BlockWeights load_shared(const Checkpoint& checkpoint, const BlockSite& site) {
  const WeightPart mine = part_read_by_rank(site.team, site.backend);
  if (mine.of == 1) return site.decoder.load(checkpoint, site.block, site.backend);
  BlockWeights weights;
  std::vector<std::string> hashes;
  together(site.team, [&] {
    weights = site.decoder.load(checkpoint, site.block, site.backend, LoadLinears::kNo);
    const std::vector<LinearSpec>& linears = site.decoder.linears();
    for (std::size_t i = 0; i < linears.size(); ++i) {
      weights.linears[i] =
          Tensor(site.backend, site.backend.activation_type(), linears[i].rows, linears[i].cols);
    }
    hashes = load_part(checkpoint, site.decoder, mine, weights, site.backend);
    site.backend.sync();  // allocated, and uploaded
  });
  hashes = gather_hashes(site.team, hashes);
  together(site.team, [&] { note_parts(checkpoint, site.decoder, site.block, hashes); });
  exchange_parts(site, weights);
  return weights;
}

LoadTraffic load_traffic(const std::vector<LinearSpec>& linears, int team,
                         double bytes_of_activation) {
  double values = 0;
  for (const LinearSpec& linear : linears) values += static_cast<double>(linear.rows * linear.cols);
  const double hashes =
      static_cast<double>(kDigits) * static_cast<double>(pieces_of_block(linears));
  return {.sent = (team - 1) * (values * bytes_of_activation + hashes),
          .received = values * bytes_of_activation * (team - 1) / team};
}

}  // namespace roundhouse
