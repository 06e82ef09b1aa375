// tokenizer.json, as Hugging Face's tokenizers write it.
#include <string>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/pipeline_tokenizer.h"
#include "model/tokenizer/post_processor.h"
#include "model/tokenizer/tokenizer_files.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 26;

bool is_set(const json& in, const char* key) {
  const auto found = in.find(key);
  return found != in.end() && !found->is_null() && *found != "" && *found != false && *found != 0.0;
}

BpeModel::Settings read_settings(const json& model, const std::string& where) {
  const auto flag = [&](const char* key) {
    const json value = model.value(key, json());
    if (!value.is_null() && !value.is_boolean())
      throw InputError(where + key + ": must be true or false");
    return value == true;
  };
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    if (is_set(model, key)) throw InputError(where + key + " is not supported");
  }
  BpeModel::Settings settings{.byte_fallback = flag("byte_fallback"),
                              .fuse_unk = flag("fuse_unk"),
                              .ignore_merges = flag("ignore_merges"),
                              .unk_token = {}};
  const json unk = model.value("unk_token", json());
  if (!unk.is_null() && !unk.is_string()) throw InputError(where + "unk_token: not a string");
  if (unk.is_string()) settings.unk_token = unk.get<std::string>();
  return settings;
}

BpeModel read_model(const json& object, const std::string& file) {
  const json& model = object["model"];
  const json type = model.value("type", json("BPE"));
  if (type != "BPE") {
    throw InputError(file + "model: " + type.dump() + " is not supported, only BPE");
  }
  const std::string where = file + "model.";
  BpeModel bpe(model.value("vocab", json()), where + "vocab: ");
  const auto merges = model.find("merges");
  if (merges == model.end() || !merges->is_array()) throw InputError(where + "merges: not a list");
  for (std::size_t i = 0; i < merges->size(); ++i) {
    const std::string at = fmt::format("{}merges[{}]: ", where, i);
    const json& merge = (*merges)[i];  // "LEFT RIGHT", or the two in a list
    if (merge.is_string()) {
      add_merge_line(bpe, merge.get<std::string>(), at);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      bpe.add_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), at);
    } else {
      throw InputError(at + "not two tokens");
    }
  }
  bpe.set(read_settings(model, where), where);
  return bpe;
}

std::string type_of(const json& step) {
  const json type = step.is_object() ? step.value("type", json()) : json();
  return type.is_string() ? type.get<std::string>() : "";
}

// What add_prefix_space in tokenizer_config.json makes of the file: transformers builds the steps anew if the key is there.
void heed_prefix_key(json& object, const TokenizerConfig& config, const std::string& where) {
  if (!config.add_prefix_space) return;
  json& words = object["pre_tokenizer"];
  if (type_of(words) == "ByteLevel") {
    words["add_prefix_space"] = *config.add_prefix_space;
    return;
  }
  const std::string scheme = !*config.add_prefix_space      ? "never"
                             : config.legacy.value_or(true) ? "always"
                                                            : "first";
  const bool prepends = Normalizer(object.value("normalizer", json()), where).has_prefix();
  if (type_of(words) == "Metaspace") {
    words["prepend_scheme"] = scheme;
  } else if (prepends && scheme != "always" && words.is_null()) {
    words = {{"type", "Metaspace"},
             {"replacement", "\u2581"},
             {"prepend_scheme", scheme},
             {"split", false}};
  }
}

}  // namespace

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& file,
                                               const TokenizerConfig& config) {
  json object = read_json_file(file, kMaxFileBytes);
  const std::string where = file.string() + ": ";
  if (!object.is_object() || !object.contains("model") || !object["model"].is_object()) {
    throw InputError(where + "no object \"model\"");
  }
  BpeModel model = read_model(object, where);
  const bool prepended = type_of(object.value("pre_tokenizer", json())) == "Metaspace";
  heed_prefix_key(object, config, where);
  Normalizer normalizer(object.value("normalizer", json()), where);
  PreTokenizers words(object["pre_tokenizer"], where);
  // What the key put into the pre-tokenizer is in its place.
  if (!prepended && type_of(object["pre_tokenizer"]) == "Metaspace") normalizer.remove_prefix();
  if (words.gives_bytes()) model.take_bytes(where + "model.vocab: ");
  auto tokenizer = std::make_unique<PipelineTokenizer>(std::move(normalizer), std::move(words),
                                                       std::move(model));
  const json added = object.value("added_tokens", json::array());
  if (!added.is_array()) throw InputError(where + "added_tokens: not a list");
  for (const json& token : added) {
    if (!token.is_object() || !token.value("content", json()).is_string()) {
      throw InputError(where + "added_tokens: a token without \"content\"");
    }
    tokenizer->add_token(token["content"].get<std::string>(), token.value("id", json()),
                         where + "added_tokens: ");
  }
  const Template around = read_template(object, where);
  tokenizer->set_around(config, around.first, around.last);
  return tokenizer;
}

}  // namespace roundhouse
