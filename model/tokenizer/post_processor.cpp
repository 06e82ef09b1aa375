#include "model/tokenizer/post_processor.h"

#include "base/error.h"
#include "base/json_file.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 8;

void add_step(const json& step, Template& around, const std::string& where, int depth) {
  const auto fail = [&] {
    throw InputError(where +
                     "post_processor: only a template of at most one special token before "
                     "and one behind the text is supported");
  };
  const json type = step.is_object() ? step.value("type", json()) : json();
  if (type == "Sequence" && depth < kMaxDepth) {
    for (const json& inner : step.value("processors", json::array()))
      add_step(inner, around, where, depth + 1);
    return;
  }
  if (type == "ByteLevel") return;
  const auto put = [&](std::optional<std::string>& place, const json& name) {
    if (!name.is_string() || place) fail();
    place = name.get<std::string>();
  };
  if (type == "RobertaProcessing" || type == "BertProcessing") {
    for (const auto& [key, place] : {std::pair("cls", &around.first), {"sep", &around.last}}) {
      const json token = step.value(key, json());
      if (!token.is_array() || token.empty()) fail();
      put(*place, token[0]);
    }
    return;
  }
  const json parts = step.is_object() ? step.value("single", json()) : json();
  if (type != "TemplateProcessing" || !parts.is_array()) fail();
  bool text_seen = false;
  for (const json& part : parts) {
    if (part.is_object() && part.contains("Sequence") && !text_seen) {
      text_seen = true;
      continue;
    }
    const json special = part.is_object() ? part.value("SpecialToken", json()) : json();
    if (!special.is_object()) fail();
    put(text_seen ? around.last : around.first, special.value("id", json()));
  }
  if (!text_seen) fail();
}

}  // namespace

Template read_template(const json& object, const std::string& where) {
  Template around;
  const json step = object.value("post_processor", json());
  if (!step.is_null()) add_step(step, around, where, 0);
  return around;
}

}  // namespace roundhouse
