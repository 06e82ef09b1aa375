// What becomes of the matches that a text is split at.
#pragma once

#include <string>
#include <vector>

#include "model/tokenizer/pre_tokenizer.h"

namespace roundhouse {

enum class Behavior { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };
// Throws InputError beginning with `where`.
Behavior behavior_of(const nlohmann::json& name, const std::string& where);

// A stretch of a text: a match, or what is between two.
struct Stretch {
  std::size_t begin, end;
  bool match;
};
// Appends the parts that the stretches make, those without a character left out. The stretches are those of one word, all of it.
void append_parts(const std::vector<Stretch>& stretches, Behavior behavior,
                  std::vector<Words::Range>& parts);

}  // namespace roundhouse
