// The list of hashes in an exported directory, as sha256sum writes and checks it.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace roundhouse {

inline constexpr const char* kSums = "SHA256SUMS";

// The line of DIRECTORY/NAME.
std::string sum_line(const std::filesystem::path& directory, const std::string& name);
// Writes DIRECTORY/SHA256SUMS: these lines, by name.
void write_sums(const std::filesystem::path& directory, std::vector<std::string> lines);

// Checks DIRECTORY/SHA256SUMS: returns the lines that are none, and the files that are missing (the list itself may be one),
// damaged or unlisted, each with what is wrong with it (empty: all is well).
// tick() is called after each file.
std::vector<std::string> verify_checkpoint(
    const std::filesystem::path& directory, const std::function<void()>& tick = [] {});

}  // namespace roundhouse
