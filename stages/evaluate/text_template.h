// Texts of task files with {{expressions}} in them, in the language of chat templates: docs/tasks.md.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/template/template_tree.h"

namespace roundhouse {

class TextTemplate {
 public:
  using Json = nlohmann::ordered_json;
  // Nothing: there is no such field.
  using Value = std::optional<Json>;
  // What a name stands for; nullptr: nothing.
  using Lookup = std::function<const Json*(const std::string& name)>;
  // Filters by other names: "trim | replace('a', 'b')", as check_chain() lets them be.
  using Chains = std::map<std::string, std::string>;

  // Throws InputError saying what is wrong in the text.
  explicit TextTemplate(std::string_view text, const Chains& chains = {});
  static void check_chain(const std::string& chain);

  // A text that is one expression and nothing else keeps its type. Throws InputError naming the field and what is wrong with it.
  Value evaluate(const Lookup& names) const;
  std::string name() const;  // of the field that it is, in quotes, or "a text"

 private:
  std::shared_ptr<const std::vector<TemplateNode>> parts_;  // the same of all copies
};

bool is_text_filter(const std::string& name);

}  // namespace roundhouse
