#include "base/json_file.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxDepth = 64;
// Of an object whose members keep their order: the library goes through all of them to find one.
constexpr std::size_t kMostOrderedKeys = 1000;

// What is parsed, and where it stands.
struct Text {
  std::string_view text;
  std::string where;
  bool has_lines;  // where is a file, of which errors name the line

  [[noreturn]] void fail(std::size_t byte, const std::string& what) const {
    if (!has_lines) throw InputError(where + ": " + what);
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
    throw InputError(
        fmt::format("{}: line {}: {}", where, 1 + std::count(text.begin(), end, '\n'), what));
  }
};

// Builds the tree from the parser's events. The library's own parser with a callback goes through all the members of an object
// whenever one of them ends.
template <class Json>
class TreeBuilder final : public nlohmann::json_sax<Json> {
 public:
  explicit TreeBuilder(const Text& text) : text_(text) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(std::int64_t value) override { return add(value); }
  bool number_unsigned(std::uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(typename Json::binary_t&) override { return false; }  // not in text
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    const auto [member, is_new] = open_.back()->emplace(name, nullptr);
    if (!is_new) {
      throw InputError(text_.where + ": the key " + in_quotes(name) + " stands twice");
    }
    if constexpr (std::is_same_v<Json, nlohmann::ordered_json>) {
      if (open_.back()->size() > kMostOrderedKeys) {
        throw InputError(
            fmt::format("{}: an object has more than {} keys", text_.where, kMostOrderedKeys));
      }
    }
    member_ = &*member;
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (dynamic_cast<const nlohmann::detail::parse_error*>(&error) != nullptr) {
      text_.fail(byte, fmt::format("not JSON (byte {})", byte));
    }
    // A number that no double holds.
    throw InputError(text_.where + ": not JSON that can be represented (a number out of range)");
  }

  Json take_root() { return std::move(root_); }

 private:
  Json& put(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    Json& parent = *open_.back();
    if (parent.is_object()) return *member_ = std::move(value);
    parent.push_back(std::move(value));
    return parent.back();
  }
  bool add(Json value) {
    put(std::move(value));
    return true;
  }
  // Nothing is added to a parent while one of its values is open, so these pointers last.
  bool open(Json value) {
    if (open_.size() >= kMaxDepth) throw InputError(text_.where + ": JSON nested too deeply");
    open_.push_back(&put(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const Text& text_;
  Json root_;
  std::vector<Json*> open_;
  Json* member_ = nullptr;  // of the innermost object: its key is read, its value not yet
};

template <class Json>
Json parse(const Text& text) {
  if (const auto nul = text.text.find('\0'); nul != text.text.npos)
    text.fail(nul, "not JSON: a NUL byte");
  TreeBuilder<Json> builder(text);
  Json::sax_parse(text.text.begin(), text.text.end(), &builder);
  return builder.take_root();
}

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::filesystem::path& file) {
  return parse<nlohmann::json>({.text = text, .where = file.string(), .has_lines = true});
}

nlohmann::ordered_json parse_ordered_json(std::string_view text, const std::string& where) {
  return parse<nlohmann::ordered_json>({.text = text, .where = where, .has_lines = false});
}

nlohmann::json read_json_file(const std::filesystem::path& path, std::size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

}  // namespace roundhouse
