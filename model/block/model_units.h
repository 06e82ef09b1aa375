// What of a model a recipe quantizes, unit by unit: its blocks, and behind the last of them, where it includes any, the linears
// outside the blocks, as one more.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/block/decoder_block.h"

namespace roundhouse {

// So many units: one more than blocks where anything is included.
inline int unit_count(int blocks, const std::vector<std::string>& include) {
  return blocks + (include.empty() ? 0 : 1);
}

// What people call a unit: "block 3"; or, where it is of some of kOuterLinears, `outside`, "embedding", "head" or "embedding and head".
std::string unit_name(int unit, const std::vector<std::string>& outside);
// The same, of a recipe's units, as unit_count() counts them.
inline std::string unit_name(int unit, int blocks, const std::vector<std::string>& include) {
  return unit_name(unit, unit < blocks ? std::vector<std::string>() : include);
}
// The same, of the block that is at work: ModelUnits::of(unit).
std::string unit_name(int unit, const DecoderBlock& decoder);

class ModelUnits {
 public:
  // `include`: some of kOuterLinears. `decoder` outlives it.
  ModelUnits(const DecoderBlock& decoder, int blocks, const std::vector<std::string>& include)
      : decoder_(decoder),
        blocks_(blocks),
        outer_(include.empty() ? nullptr : decoder.outer(include)) {}

  int count() const { return blocks_ + (outer_ ? 1 : 0); }
  int blocks() const { return blocks_; }
  const DecoderBlock& of(int unit) const { return unit < blocks_ ? decoder_ : *outer_; }
  const DecoderBlock* outer() const { return outer_.get(); }  // nullptr: nothing is included

 private:
  const DecoderBlock& decoder_;
  int blocks_;
  std::unique_ptr<DecoderBlock> outer_;
};

}  // namespace roundhouse
