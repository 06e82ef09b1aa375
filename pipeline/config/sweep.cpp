#include "pipeline/config/sweep.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/section.h"
#include "stages/quantize/recipe.h"

namespace roundhouse {
namespace {

constexpr const char* kMethod = "method";
constexpr const char *kOverrides = "overrides", *kInclude = "include";  // whose values are lists
constexpr std::size_t kMostRecipes = 10'000;

// A key of a product and the values that it takes in turn.
struct Axis {
  std::string key;
  std::vector<YamlNode> values;
};

std::string text_of(const YamlNode& map) {
  std::vector<std::string> pairs;
  for (std::size_t i = 0; i < map.keys.size(); ++i) {
    const nlohmann::json value = to_json(map.items[i]);
    pairs.push_back(map.keys[i] + ": " +
                    (value.is_string() ? value.get<std::string>() : value.dump()));
  }
  return fmt::format("{{{}}}", fmt::join(pairs, ", "));
}

// Every key that recipes of a method have.
std::set<std::string> keys_of(const YamlNode& method, const std::string& path) {
  std::set<std::string> keys = {"calibration", kOverrides};
  try {
    const nlohmann::json written_out =
        resolved(parse_recipe({{kMethod, Section::scalar(method, path)}}));
    for (const auto& [key, value] : written_out.items()) keys.insert(key);
  } catch (const RecipeError& error) {
    fail(method.where, path, error.what);
  }
  try {
    (void)parse_recipe({{kMethod, method.text}, {kInclude, {kOuterLinears.back()}}});
    keys.insert(kInclude);
  } catch (const RecipeError&) {  // not of this method
  }
  return keys;
}

class Product {
 public:
  Product(const YamlNode& node, std::string path) : node_(node), path_(std::move(path)) {
    if (node.kind != YamlNode::Kind::kMap) {
      fail(node.where, path_,
           "must be a group of keys, as in {methods: [rtn, gptq], bits: [4, 3]}");
    }
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
      if (node.keys[i] == "except") {
        read_exceptions(node.items[i]);
      } else {
        read_axis(node.keys[i] == "methods" ? kMethod : node.keys[i], node.items[i]);
      }
    }
    const auto methods = std::ranges::find(axes_, kMethod, &Axis::key);
    if (methods == axes_.end()) fail(node.where, path_ + ".methods", "is missing");
    for (const YamlNode& method : methods->values)
      known_[method.text] = keys_of(method, path_ + ".methods");
    for (const Axis& axis : axes_) {
      const auto has = [&](const auto& method) { return method.second.contains(axis.key); };
      if (std::ranges::none_of(known_, has)) fail_unknown(axis.key);
    }
  }

  std::vector<SweepRecipe> expand(std::vector<std::string>& notes) {
    std::size_t count = 1;
    for (const Axis& axis : axes_) {
      count *= axis.values.size();
      if (count > kMostRecipes) {
        fail(node_.where, path_, fmt::format("stands for more than {} recipes", kMostRecipes));
      }
    }
    for (std::size_t number = 0; number < count; ++number) add(combination(number));
    for (const Exception& exception : exceptions_) {
      if (exception.used) continue;
      fail(exception.node->where, path_ + ".except",
           text_of(*exception.node) + " is none of the combinations");
    }
    for (const auto& [method, keys] : left_out_) {
      notes.push_back(fmt::format("{}: {} has no {}, which counts for the other methods only",
                                  path_, method, fmt::join(keys, ", no ")));
    }
    return std::move(recipes_);
  }

 private:
  struct Exception {
    const YamlNode* node;
    bool used;
  };

  void read_axis(const std::string& key, const YamlNode& value) {
    const std::string path = path_ + "." + key;
    if (key == "name") fail(value.where, path, "recipes of a sweep are named after what they are");
    if (std::ranges::find(axes_, key, &Axis::key) != axes_.end())
      fail(value.where, path, "stands there twice");
    bool list = value.kind == YamlNode::Kind::kSequence;
    if (list && value.items.empty()) fail(value.where, path, "is an empty list");
    // One value, [{match: ..}], or several, [[], [{match: ..}]].
    if (list && (key == kOverrides || key == kInclude) &&
        value.items.front().kind != YamlNode::Kind::kSequence)
      list = false;
    Axis& axis = axes_.emplace_back(Axis{key, list ? value.items : std::vector{value}});
    for (std::size_t i = 0; i < axis.values.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        if (to_json(axis.values[i]) == to_json(axis.values[j]))
          fail(axis.values[i].where, path, to_json(axis.values[i]).dump() + " stands there twice");
      }
    }
  }

  void read_exceptions(const YamlNode& value) {
    const bool list = value.kind == YamlNode::Kind::kSequence;
    const std::size_t count = list ? value.items.size() : 1;
    for (std::size_t i = 0; i < count; ++i) {
      const YamlNode& each = list ? value.items[i] : value;
      if (each.kind != YamlNode::Kind::kMap || each.keys.empty()) {
        fail(each.where, path_ + ".except",
             "must be what is taken out, as in [{method: awq, bits: 2}]");
      }
      exceptions_.push_back({&each, false});
    }
  }

  [[noreturn]] void fail_unknown(const std::string& key) const {
    std::set<std::string> all;
    for (const auto& [method, keys] : known_) all.insert(keys.begin(), keys.end());
    const YamlNode* const at = node_.find(key);
    fail(at != nullptr ? at->where : node_.where, path_,
         unknown_key(key, {all.begin(), all.end()}));
  }

  // The last axis changes fastest.
  YamlNode combination(std::size_t number) const {
    YamlNode node;
    node.kind = YamlNode::Kind::kMap;
    node.where = node_.where;
    node.items.resize(axes_.size());
    for (const Axis& axis : axes_) node.keys.push_back(axis.key);
    for (std::size_t i = axes_.size(); i-- > 0; number /= axes_[i].values.size())
      node.items[i] = axes_[i].values[number % axes_[i].values.size()];
    return node;
  }

  void add(const YamlNode& all) {
    const nlohmann::json values = to_json(all);
    bool taken_out = false;
    for (Exception& exception : exceptions_) {
      const nlohmann::json pattern = to_json(*exception.node);
      const bool matches = std::ranges::all_of(pattern.items(), [&](const auto& pair) {
        return values.contains(pair.key()) && values[pair.key()] == pair.value();
      });
      exception.used = exception.used || matches;
      taken_out = taken_out || matches;
    }
    if (taken_out) return;
    const auto method = values.at(kMethod).get<std::string>();
    YamlNode node = all;
    node.keys.clear();
    node.items.clear();
    for (std::size_t i = 0; i < all.keys.size(); ++i) {
      if (!known_.at(method).contains(all.keys[i])) {
        left_out_[method].insert(all.keys[i]);
        continue;
      }
      node.keys.push_back(all.keys[i]);
      node.items.push_back(all.items[i]);
    }
    if (!made_.insert(to_json(node).dump()).second) return;
    std::string text = text_of(node);
    recipes_.push_back({std::move(node), path_, std::move(text)});
  }

  const YamlNode& node_;
  std::string path_;
  std::vector<Axis> axes_;
  std::vector<Exception> exceptions_;
  std::map<std::string, std::set<std::string>> known_;  // keys by method
  std::map<std::string, std::set<std::string>> left_out_;
  std::set<std::string> made_;
  std::vector<SweepRecipe> recipes_;
};

}  // namespace

std::vector<SweepRecipe> expand_sweep(const YamlNode& sweep, std::vector<std::string>& notes) {
  const bool list = sweep.kind == YamlNode::Kind::kSequence;
  if (list && sweep.items.empty()) return {};
  std::vector<SweepRecipe> recipes;
  for (std::size_t i = 0; i < (list ? sweep.items.size() : 1); ++i) {
    const std::string path = list ? fmt::format("sweep[{}]", i) : "sweep";
    for (SweepRecipe& each : Product(list ? sweep.items[i] : sweep, path).expand(notes))
      recipes.push_back(std::move(each));
  }
  if (recipes.empty()) fail(sweep.where, "sweep", "`except` leaves no recipe");
  notes.push_back(fmt::format("sweep: {} recipes", recipes.size()));
  return recipes;
}

}  // namespace roundhouse
