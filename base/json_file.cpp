#include "base/json_file.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 64;

[[noreturn]] void fail(const std::filesystem::path& file, std::string_view text, std::size_t byte,
                       const std::string& what) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
  const auto line = 1 + std::count(text.begin(), end, '\n');
  throw InputError(file.string() + ": line " + std::to_string(line) + ": " + what);
}

// Builds the tree from the parser's events. The library's own parser with a callback goes through all the members of an object
// whenever one of them ends.
class TreeBuilder final : public nlohmann::json_sax<json> {
 public:
  TreeBuilder(const std::filesystem::path& file, std::string_view text)
      : file_(file), text_(text) {}

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(std::int64_t value) override { return add(value); }
  bool number_unsigned(std::uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(json::binary_t&) override { return false; }  // not in text
  bool start_object(std::size_t) override { return open(json::object()); }
  bool start_array(std::size_t) override { return open(json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& name) override {
    const auto [member, is_new] = open_.back()->emplace(name, nullptr);
    if (!is_new) {
      throw InputError(file_.string() + ": the key " + in_quotes(name) + " stands twice");
    }
    member_ = &*member;
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&, const json::exception& error) override {
    if (dynamic_cast<const json::parse_error*>(&error) != nullptr) {
      fail(file_, text_, byte, "not JSON (byte " + std::to_string(byte) + ")");
    }
    // A number that no double holds.
    throw InputError(file_.string() + ": not JSON that can be represented (a number out of range)");
  }

  json take_root() { return std::move(root_); }

 private:
  json& put(json value) {
    if (open_.empty()) return root_ = std::move(value);
    json& parent = *open_.back();
    if (parent.is_object()) return *member_ = std::move(value);
    parent.push_back(std::move(value));
    return parent.back();
  }
  bool add(json value) {
    put(std::move(value));
    return true;
  }
  // Nothing is added to a parent while one of its values is open, so these pointers last.
  bool open(json value) {
    if (open_.size() >= kMaxDepth) throw InputError(file_.string() + ": JSON nested too deeply");
    open_.push_back(&put(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::filesystem::path& file_;
  std::string_view text_;
  json root_;
  std::vector<json*> open_;
  json* member_ = nullptr;  // of the innermost object: its key is read, its value not yet
};

}  // namespace

nlohmann::json parse_json(std::string_view text, const std::filesystem::path& file) {
  if (const auto nul = text.find('\0'); nul != text.npos)
    fail(file, text, nul, "not JSON: a NUL byte");
  TreeBuilder builder(file, text);
  json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take_root();
}

nlohmann::json read_json_file(const std::filesystem::path& path, std::size_t max_bytes) {
  return parse_json(read_text_file(path, max_bytes), path);
}

}  // namespace roundhouse
