// One map of the configuration, read key by key: every key is checked, those that nobody asked for are refused with file and line.
#pragma once

#include <charconv>
#include <concepts>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "base/quote.h"
#include "base/yaml_tree.h"

namespace roundhouse {

// Throws InputError "where: key: what". `where` may name the key already, as "--set mesh.data" does.
[[noreturn]] void fail(const std::string& where, const std::string& key, const std::string& what);
// "unknown key 'bit' (did you mean 'bits'?)"
std::string unknown_key(const std::string& key, const std::vector<std::string>& known);
std::string override_of(const std::string& key);  // "--set mesh.data": where a value comes from
bool is_whole_number(std::string_view text);

// Whether the files that a configuration names have to be there.
enum class InputFiles { kMustExist, kMayBeGone };

// Every key must be asked for before finish(). Each getter throws InputError for what it cannot take.
class Section {
 public:
  // `node` may be nullptr: a section that is not given.
  Section(const YamlNode* node, std::string path, std::string where);

  bool given() const { return node_ != nullptr; }
  Section section(const std::string& key);
  std::vector<std::string> keys() const;  // all that are there
  // nullptr if it is not given.
  const YamlNode* node(const std::string& key) { return find(key); }
  const std::vector<YamlNode>* sequence(const std::string& key);
  std::string text(const std::string& key, const std::string& fallback);
  static std::string scalar(const YamlNode& node, const std::string& path);
  std::string required_text(const std::string& key);
  std::string one_of(const std::string& key, const std::string& fallback,
                     const std::vector<std::string>& choices);
  bool boolean(const std::string& key, bool fallback);

  template <std::integral T>
  T integer(const std::string& key, T fallback, T least, T most) {
    const YamlNode* node = find(key);
    if (node == nullptr) return fallback;
    const std::string word = scalar(*node, path_of(key));
    if (node->quoted || !is_whole_number(word)) {
      fail(node->where, path_of(key), "must be a whole number, not " + in_quotes(word));
    }
    T value{};
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc{} || stop != word.data() + word.size() || value < least ||
        value > most) {
      fail(node->where, path_of(key),
           fmt::format("must be from {} to {}, not {}", least, most, in_quotes(word)));
    }
    return value;
  }

  double number(const std::string& key, double fallback, double least, double most);
  // The path of a regular file that is there, if it must be.
  std::filesystem::path file(const std::string& key, InputFiles files);
  void finish() const;

  const std::string& path() const { return path_; }
  std::string path_of(const std::string& key) const {
    return path_.empty() ? key : path_ + "." + key;
  }
  // Where the value stands, or would.
  std::string where(const std::string& key) const;

 private:
  const YamlNode* find(const std::string& key);

  const YamlNode* node_;
  std::string path_;
  std::string where_;
  std::vector<std::string> known_;
};

}  // namespace roundhouse
