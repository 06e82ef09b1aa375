// What a run remembers. A record is a few named tensors and some JSON, committed as a whole or not at all.
//
// Keys are paths inside the run and carry recipe, block and shard, never a rank:
//   calibration                                        token ids, of the default set; of others calibration-SET
//   recipes/RECIPE/block-0007                          one quantized block: the unit of progress
//   recipes/RECIPE/decision                            what its method decided for the whole model, if it does
//   recipes/RECIPE/statistics/block-0007               what it decides by: made of the gradients of a block
//   recipes/RECIPE/activations/after-0008/shard-03     snapshot of a shard's residual after 8 blocks
//   recipes/RECIPE/progress/block-0007/step-000120/... what a method has made so far of a block
//   activations/after-0008/shard-03                    the same of the full-precision stream, for all recipes of the default calibration
//   activations/of-SET/after-0008/shard-03             and for those of another set
//   gradients/100x512/at-0008/shard-03                 gradient of the model's loss at the input of block 8
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/tensor.h"

namespace roundhouse {

struct Record {
  std::map<std::string, HostTensor> tensors;
  nlohmann::json attributes;
};

class RunStore {
 public:
  virtual ~RunStore() = default;
  // Atomic and durable when it returns. Throws Error (a full disk says so); the old record, if any, is then intact.
  virtual void commit(const std::string& key, const Record& record) = 0;
  // Nothing if there is none. A damaged record (hash, structure) counts as none: it is reported once to `on_damage`
  // and can be committed anew. Throws Error only where reading is not possible at all (permissions, ...).
  virtual std::optional<Record> load(const std::string& key) = 0;
  // Those of the record that load() would give, without reading its tensors, so that damage to these is not seen.
  virtual std::optional<nlohmann::json> attributes(const std::string& key) = 0;
  // Whether load() would give it, having read all of it. known_whole(): that was found by this object before, or it wrote it.
  virtual bool whole(const std::string& key) { return load(key).has_value(); }
  virtual bool known_whole(const std::string& /*key*/) const { return false; }
  virtual void doubt(const std::string& /*key*/) {}  // known_whole() no more, nor expected
  bool has(const std::string& key) { return attributes(key).has_value(); }
  virtual void remove(const std::string& key) = 0;  // no error if there is none
  // Of all records whose keys begin with `folder`/, sorted; damaged ones among them.
  virtual std::vector<std::string> keys(const std::string& folder) = 0;
  // How long the record is in the store; 0: there is none. Not whether it is whole.
  virtual std::uint64_t bytes(const std::string& key) = 0;
  // Another rank says that it has committed this record, and with which length: until it is seen here it is waited for, and not
  // seeing it is an Error.
  virtual void expect(const std::string& key, std::uint64_t bytes) = 0;

  std::function<void(const std::string& key, const std::string& why)> on_damage;
};

std::string block_key(const std::string& recipe, int block);
std::string decision_key(const std::string& recipe);
std::string statistics_key(const std::string& recipe, int block);
std::string snapshot_key(const std::string& recipe, int blocks_done, int shard);
// `set`: of the calibration's sets; "default" is the one without a name.
std::string shared_snapshot_key(const std::string& set, int blocks_done, int shard);
std::string shared_snapshots(const std::string& set);  // their folder

}  // namespace roundhouse
