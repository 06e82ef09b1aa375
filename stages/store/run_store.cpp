#include "stages/store/run_store.h"

#include <fmt/format.h>

namespace roundhouse {

std::string block_key(const std::string& recipe, int block) {
  return fmt::format("recipes/{}/block-{:04}", recipe, block);
}

std::string decision_key(const std::string& recipe) { return "recipes/" + recipe + "/decision"; }

std::string statistics_key(const std::string& recipe, int block) {
  return fmt::format("recipes/{}/statistics/block-{:04}", recipe, block);
}

namespace {

std::string place_of_shard(int blocks_done, int shard) {
  return fmt::format("/after-{:04}/shard-{:02}", blocks_done, shard);
}

}  // namespace

std::string snapshot_key(const std::string& recipe, int blocks_done, int shard) {
  return "recipes/" + recipe + "/activations" + place_of_shard(blocks_done, shard);
}

std::string shared_snapshots(const std::string& set) {
  return set == "default" ? "activations" : "activations/of-" + set;
}

std::string shared_snapshot_key(const std::string& set, int blocks_done, int shard) {
  return shared_snapshots(set) + place_of_shard(blocks_done, shard);
}

}  // namespace roundhouse
