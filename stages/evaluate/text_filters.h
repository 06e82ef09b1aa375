// Filters of the template language (docs/tasks.md): what stands behind a | in {{field | trim}}.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

struct TextFilter {
  using Json = nlohmann::ordered_json;

  std::string_view name;
  std::size_t arguments;
  // Throws InputError saying what is wrong with a value or an argument, without where.
  Json (*apply)(const Json& value, std::span<const Json> arguments);
};

// nullptr: there is none of that name.
const TextFilter* find_text_filter(std::string_view name);
const std::vector<std::string>& text_filter_names();

// Bytes of all texts in a value, and one for each value.
std::size_t bytes_of(const nlohmann::ordered_json& value);
// No document's texts become longer, however a template goes about it.
inline constexpr std::size_t kMostTemplateBytes = std::size_t{64} << 20;

// All occurrences, from left to right. Precondition: `from` is not empty.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

}  // namespace roundhouse
