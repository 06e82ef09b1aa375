// What is read of finished records when. At the start of a job: their seals, sizes and attributes (RunStore::attributes()), so that a
// sweep of terabytes starts in seconds. All of a record: before something is made of it, and once before a run says that it is done.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/communicator.h"
#include "stages/quantize/recipe.h"
#include "stages/store/run_store.h"

namespace roundhouse {

// Thrown alike on all ranks where records were damaged and are gone now: `roundhouse run` makes them again.
class DamagedRecords : public Error {
 public:
  explicit DamagedRecords(const std::string& what) : Error(what) {}
};

// Collective. Ranks share in reading those of the records (the same keys on all) that no rank has read or written whole before. Damaged
// ones are reported to the store's on_damage and removed; returns how many were.
int remove_damaged(const std::vector<std::string>& keys, RunStore& store, Communicator& world,
                   const std::function<void()>& tick);
// The same, but all stay where they are.
int count_damaged(const std::vector<std::string>& keys, RunStore& store, Communicator& world,
                  const std::function<void()>& tick);

std::vector<std::string> block_keys(const std::string& recipe, int blocks);
// All that a run makes of a recipe.
std::vector<std::string> record_keys(const Recipe& recipe, int blocks);

}  // namespace roundhouse
