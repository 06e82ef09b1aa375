#include "stages/store/run_store.h"

#include <cstdio>

namespace roundhouse {

std::string block_key(const std::string& recipe, int block) {
  char name[32];
  std::snprintf(name, sizeof name, "block-%04d", block);
  return "recipes/" + recipe + "/" + name;
}

std::string decision_key(const std::string& recipe) { return "recipes/" + recipe + "/decision"; }

std::string statistics_key(const std::string& recipe, int block) {
  char name[48];
  std::snprintf(name, sizeof name, "/statistics/block-%04d", block);
  return "recipes/" + recipe + name;
}

namespace {

std::string place_of_shard(int blocks_done, int shard) {
  char name[48];
  std::snprintf(name, sizeof name, "/after-%04d/shard-%02d", blocks_done, shard);
  return name;
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
