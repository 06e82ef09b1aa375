// `sweep`: products of methods and options, written as lists, become recipes.
//
//   sweep: {methods: [rtn, gptq, squeezellm], bits: [4, 3], group_size: [-1, 128], except: [{method: gptq, bits: 3}]}
//
// Each key whose value is a list is gone through, the first one slowest; other keys hold for all. A key that some of the methods do not
// have (group_size of squeezellm) does not count for these, and combinations that become equal thereby are one; a note says so. A key
// that none of them has, and a value that one of them does not take, are errors.
#pragma once

#include <string>
#include <vector>

#include "base/yaml_tree.h"

namespace roundhouse {

struct SweepRecipe {
  YamlNode node;            // as one of `recipes`
  std::string path;         // "sweep", or "sweep[1]" of several
  std::string combination;  // "{method: gptq, bits: 3}", for messages
};

// `sweep`: one product, or a list of them. Throws InputError with file and line: no method, an empty list, a key that no method has, an
// exception that nothing matches. `notes` gets lines for people.
std::vector<SweepRecipe> expand_sweep(const YamlNode& sweep, std::vector<std::string>& notes);

}  // namespace roundhouse
