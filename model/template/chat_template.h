// How a model has a conversation written down: the template in its files, in Jinja's syntax (ChatML, Llama 3, Mistral and what
// else is written with the same means).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "model/template/template_tree.h"

namespace roundhouse {

class ChatTemplate {
 public:
  // Of chat_template.jinja, else `chat_template` in tokenizer_config.json (of several the one named "default"). Throws InputError
  // naming the file: there is none, or what parse_template() says.
  explicit ChatTemplate(const std::filesystem::path& model);

  // A list of {role, content} as transformers' apply_chat_template() writes it without tools and without a beginning of an answer.
  // Dates are those that the template names when it is not told the day (Llama 3.2: 26 Jul 2024), so a conversation is the same
  // text on every day. Safe in several threads. Throws InputError: the template refuses the conversation, or does what is not
  // done here; more than 16 MiB, or a million steps.
  std::string render(const nlohmann::json& messages) const;
  const std::string& source() const { return where_; }  // the file, for people

 private:
  std::string where_;
  std::vector<TemplateNode> nodes_;
  nlohmann::ordered_json variables_;  // bos_token, ..
};

}  // namespace roundhouse
