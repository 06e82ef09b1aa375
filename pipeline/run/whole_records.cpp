#include "pipeline/run/whole_records.h"

#include <algorithm>

namespace roundhouse {

namespace {

int for_each_damaged(const std::vector<std::string>& keys, RunStore& store, Communicator& world,
                     const std::function<void()>& tick,
                     const std::function<void(const std::string& key)>& visit) {
  std::vector<char> known(keys.size());
  std::ranges::transform(keys, known.begin(),
                         [&](const std::string& key) { return store.known_whole(key) ? 1 : 0; });
  for (const auto& theirs : world.all_gather(std::as_bytes(std::span(known)))) {
    for (std::size_t i = 0; i < known.size(); ++i) known[i] |= static_cast<char>(theirs[i]);
  }
  int turn = 0, damaged = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (known[i] || turn++ % world.size() != world.rank()) continue;
    if (!store.whole(keys[i])) {
      visit(keys[i]);
      ++damaged;
    }
    tick();
  }
  return static_cast<int>(world.all_reduce_sum(damaged));
}

}  // namespace

int remove_damaged(const std::vector<std::string>& keys, RunStore& store, Communicator& world,
                   const std::function<void()>& tick) {
  return for_each_damaged(keys, store, world, tick,
                          [&](const std::string& key) { store.remove(key); });
}

int count_damaged(const std::vector<std::string>& keys, RunStore& store, Communicator& world,
                  const std::function<void()>& tick) {
  return for_each_damaged(keys, store, world, tick, [](const std::string&) {});
}

std::vector<std::string> block_keys(const std::string& recipe, int blocks) {
  std::vector<std::string> keys;
  for (int block = 0; block < blocks; ++block) keys.push_back(block_key(recipe, block));
  return keys;
}

std::vector<std::string> record_keys(const Recipe& recipe, int blocks) {
  std::vector<std::string> keys = block_keys(recipe.name, recipe.units(blocks));
  if (recipe.needs.decision) keys.insert(keys.begin(), decision_key(recipe.name));
  return keys;
}

}  // namespace roundhouse
