// YAML from outside as a plain tree in which every node knows where it stands. Bounded before it is
// built: size, nodes and nesting; no anchors, aliases or tags, so that a small file cannot stand
// for a huge one.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace roundhouse {

struct YamlNode {
  enum class Kind { kNull, kScalar, kSequence, kMap };

  Kind kind = Kind::kNull;
  std::string where;    // "config.yaml:12", or "--set mesh.data"; of a map's entry: its key's
  std::string text;     // of a scalar
  bool quoted = false;  // a scalar that is text whatever it looks like
  std::vector<std::string> keys;  // of a map, beside `items`
  std::vector<YamlNode> items;    // of a sequence or a map

  const YamlNode* find(const std::string& key) const;  // of a map; nullptr: not there
};

inline constexpr std::size_t kMostYamlBytes = std::size_t{1} << 20;

// `where` names a line (counted from 1), or with 0 the whole. Throws InputError "where: what is
// wrong". Empty text is a null.
YamlNode parse_yaml(const std::string& text, const std::function<std::string(int line)>& where);

// YAML's core schema: true, 4, 0.5, null; everything else is text.
nlohmann::json to_json(const YamlNode& node);

}  // namespace roundhouse
