// Values that the command line puts in place of what the file says.
#pragma once

#include <string>

#include "base/yaml_tree.h"

namespace roundhouse {

// Puts the value of "a.b=value" into the tree; "a.0.b" is the first entry of a list. Throws InputError "--set a.b: what is wrong".
void apply_override(YamlNode& root, const std::string& assignment);

}  // namespace roundhouse
