// What a tokenizer puts around a text: the key "post_processor" of a tokenizer.json.
#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

namespace roundhouse {

// The tokens around a text, by name.
struct Template {
  std::optional<std::string> first, last;
};

// Throws InputError beginning with `where` for anything but at most one special token before and one behind the text, by
// TemplateProcessing, RobertaProcessing, BertProcessing or a Sequence of them; ByteLevel puts nothing there.
Template read_template(const nlohmann::json& object, const std::string& where);

}  // namespace roundhouse
