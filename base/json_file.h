// JSON that comes from outside: config.json, headers of weights, indices.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "base/quote.h"

namespace roundhouse {

// Stricter than the library's own parse: a key that stands twice in an object (the library keeps
// one of them), a NUL byte (the library takes it for the end of the text) and nesting deeper than
// any of these files has are errors too. Throws InputError naming the file and the line.
nlohmann::json parse_json(std::string_view text, const std::filesystem::path& file);
// The same with members in their order, of which an object may have 1000. Errors name `where` instead: a file, or a line of one.
nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where);
nlohmann::json read_json_file(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace roundhouse
