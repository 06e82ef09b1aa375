#include "model/json_file.h"

#include <algorithm>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

constexpr int kMaxDepth = 64;

[[noreturn]] void fail(const std::filesystem::path& file, std::string_view text, std::size_t byte,
                       const std::string& what) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
  const auto line = 1 + std::count(text.begin(), end, '\n');
  throw InputError(file.string() + ": line " + std::to_string(line) + ": " + what);
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::filesystem::path& file) {
  using nlohmann::json;
  if (const auto nul = text.find('\0'); nul != text.npos)
    fail(file, text, nul, "not JSON: a NUL byte");

  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    if (depth > kMaxDepth) throw InputError(file.string() + ": JSON nested too deeply");
    if (event == json::parse_event_t::object_start) {
      keys.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      keys.pop_back();
    } else if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw InputError(file.string() + ": the key " + in_quotes(key) + " stands twice");
      }
    }
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& error) {
    fail(file, text, error.byte, "not JSON (byte " + std::to_string(error.byte) + ")");
  } catch (const json::exception&) {  // a number that no double holds
    throw InputError(file.string() + ": not JSON that can be represented (a number out of range)");
  }
}

nlohmann::json read_json_file(const std::filesystem::path& path, std::size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

std::string in_quotes(std::string_view name) {
  constexpr std::size_t kLongest = 200;
  std::string text(name.substr(0, kLongest));
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return "\"" + text + (name.size() > kLongest ? "...\"" : "\"");
}

std::string in_quotes(const std::vector<std::string>& names) {
  constexpr std::size_t kShown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kShown); ++i)
    text += (i > 0 ? ", " : "") + in_quotes(std::string_view(names[i]));
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

}  // namespace roundhouse
