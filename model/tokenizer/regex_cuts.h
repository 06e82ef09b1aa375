// Where a text may be cut before it is searched for a regular expression, whatever stands around the place.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/tokenizer/regex.h"

namespace roundhouse {

// What cutting a text between two characters does to the parts that it is split into.
enum class Cut {
  kNo,        // it may change them
  kHarmless,  // it may split the one that they are both in, and changes nothing else
  kBetween,   // nothing: they never are in one
};

// The positions of a pattern, each a set of characters, and which of them may follow one another (Glushkov 1961, "The abstract
// theory of automata"): two characters may stand side by side in a match only at positions that do. A pattern with anything
// but sequences, alternatives, repetitions and, at the end of an alternative, a look at the next character is not taken apart:
// nothing may be cut.
class RegexCuts {
 public:
  RegexCuts(const std::string& pattern, const std::string& where);
  Cut cut(char32_t left, char32_t right) const;

 private:
  struct Position {
    Regex set;
    bool looks_ahead = false;  // at any character, and takes none
    bool alone = false;        // may be a whole match
    bool kept = false;         // in an alternative with a possessive part
  };
  bool holds(const Position& position, char32_t c) const;

  friend class RegexReader;
  bool known_ = false;
  std::vector<Position> positions_;
  std::vector<std::pair<std::size_t, std::size_t>> neighbours_;
};

}  // namespace roundhouse
