#pragma once

#include <cstddef>
#include <string_view>

namespace roundhouse {

// May this be the name of a file or folder of a run, on every file system and in every shell: letters, digits, '-', '.' and '_', none of them
// a '.' in front, at most so many?
bool is_file_name(std::string_view name, std::size_t longest = 100);

}  // namespace roundhouse
