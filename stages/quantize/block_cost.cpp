#include "stages/quantize/block_cost.h"

#include <algorithm>

#include "comm/tree_sum.h"
#include "stages/flow/block_sum.h"

namespace roundhouse {
namespace {

int tiles_of(const LinearSpec& spec) {
  return static_cast<int>((spec.rows + kTileRows - 1) / kTileRows);
}

// Of a sum of `pieces` matrices: how many partial sums all ranks but the owner send.
int partial_sums_sent(int pieces, int owner, int team) {
  int sent = 0;
  for (int rank = 0; rank < team; ++rank) {
    if (rank != owner) sent += partial_sums_of_rank(pieces, rank, team);
  }
  return sent;
}

}  // namespace

std::vector<double> bytes_of_tiles(const LinearSpec& linear, int matrices) {
  std::vector<double> bytes;
  for (const RowTile& tile : tiles_of_linear(linear, 0, 1))
    bytes.push_back(4.0 * matrices * static_cast<double>(tile.rows * linear.cols));
  return bytes;
}

double BlockCost::busiest(const std::string& phase, int team, int shards) const {
  static const std::vector<Cut> by_shards = {{1.0, Cut::kShards}};
  const auto found = cuts.find(phase);
  double share = 0;
  for (const Cut& cut : found == cuts.end() ? by_shards : found->second) {
    const int pieces = std::max(1, cut.pieces == Cut::kShards ? shards : cut.pieces);
    share += cut.share * ((pieces + team - 1) / team) / pieces;
  }
  return share;
}

TeamBytes team_bytes(const TeamTraffic& traffic, int team, int shards, double bytes_of_activation) {
  TeamBytes bytes;
  if (team == 1) return bytes;
  for (const PieceSum& sum : traffic.sums) {
    const int pieces = sum.pieces == Cut::kShards ? shards : sum.pieces;
    std::vector<double> received(static_cast<std::size_t>(team));
    const int first = sum.first_owner % team;
    int owner = first;
    for (const double tile : sum.tiles) {
      const double summed = sum.times * tile * partial_sums_sent(pieces, owner, team);
      const double moved = sum.gathered && owner != first ? sum.times * tile : 0;
      bytes.sent += summed + moved;
      received[owner] += summed;
      received[first] += moved;
      owner = (owner + 1) % team;
    }
    bytes.received_by_devices += *std::ranges::max_element(received);
  }
  const double spread = traffic.spread * bytes_of_activation;
  const double scattered = traffic.scattered * bytes_of_activation * (team - 1) / team;
  bytes.sent +=
      (traffic.shared + traffic.gathered + traffic.codes + spread) * (team - 1) + scattered;
  bytes.received_by_devices += traffic.shared + (traffic.codes + spread) * (team - 1) / team;
  bytes.received_by_hosts += traffic.gathered * (team - 1) / team + scattered / team;
  return bytes;
}

double BlockSizes::rows(int linear) const {
  return static_cast<double>(block.linears()[linear].rows);
}

double BlockSizes::weights(std::size_t first, std::size_t last) const {
  double sum = 0;
  for (std::size_t g = first; g <= last; ++g) {
    for (const int i : block.shared_inputs()[g].linears)
      sum += rows(i) * cols(block.shared_inputs()[g]);
  }
  return sum;
}

double BlockSizes::stream_bytes() const {
  return kBytesOfActivation * tokens * static_cast<double>(block.hidden_size());
}

double BlockSizes::attention() const {
  if (!block.flows()) return 0;
  // Half of the scores are of tokens to come. All heads together are as wide as the input of the linear behind attention.
  return 2 * tokens * length * cols(block.shared_inputs()[1]);
}

std::vector<Cut> BlockSizes::tiles() const {
  std::vector<Cut> cuts;
  for (const LinearSpec& linear : block.linears()) {
    const auto size = static_cast<double>(linear.rows * linear.cols);
    cuts.push_back({size / all_weights(), tiles_of(linear)});
  }
  return cuts;
}

void BlockSizes::share_codes(TeamTraffic& traffic, std::int64_t group_size) const {
  for (const LinearSpec& linear : block.linears()) {
    const std::int64_t size = group_size == -1 ? linear.cols : std::min(group_size, linear.cols);
    const std::int64_t groups = (linear.cols + size - 1) / size;
    traffic.codes += static_cast<double>(linear.rows * (linear.cols + 3 * groups));
  }
  traffic.gathered += 24.0 * tile_count();
}

int BlockSizes::tile_count() const {
  int count = 0;
  for (const LinearSpec& linear : block.linears()) count += tiles_of(linear);
  return count;
}

BlockCost gradient_cost(const BlockSizes& sizes, int sums) {
  BlockCost cost;
  const double product = 2 * sizes.tokens * sizes.all_weights();
  cost.flops["forward"] = product;
  cost.flops["backward"] = product * (sums > 0 ? 3 : 2);
  cost.attention["forward"] = sizes.attention();
  // The forward pass again, and back: five products in place of two.
  cost.attention["backward"] = 3.5 * sizes.attention();
  cost.bytes_up = 3 * sizes.stream_bytes();
  cost.bytes_down = 2 * sizes.stream_bytes();
  const double matrix = 4 * sizes.all_weights();
  for (const LinearSpec& linear : sizes.block.linears()) {
    cost.traffic.sums.push_back({.tiles = bytes_of_tiles(linear, sums)});
  }
  cost.memory.summed = matrix * sums;
  cost.memory.added_at_once = BlockSum::kAddedAtOnce;
  return cost;
}

bool works_in_f32(const std::string& phase) {
  return phase == "factor" || phase == "solve" || phase == "search in F32";
}

}  // namespace roundhouse
