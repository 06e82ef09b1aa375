// A folder that is complete or not there: it is written under another name and renamed at the end.
#pragma once

#include <filesystem>

namespace roundhouse {

// An absolute path without a slash at its end, so that a name can be added to it.
std::filesystem::path output_path(const std::filesystem::path& directory);

// "DIRECTORYsuffix". Precondition: output_path().
std::filesystem::path beside(const std::filesystem::path& directory, const char* suffix);

// Throws InputError if something lies where an export shall be that is not an earlier one: it is somebody's, and never replaced.
// `known`: it is ours, whatever lies there.
void check_replaceable(const std::filesystem::path& directory, bool known);

// Gives `partial` the name `directory`; what had it goes. Between the two renames a crash leaves both versions complete under other
// names, and none under this one. Throws Error.
void move_into_place(const std::filesystem::path& partial, const std::filesystem::path& directory);

}  // namespace roundhouse
