#include "model/tokenizer.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "model/json_file.h"
#include "model/model_config.h"
#include "model/tokenizer_files.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;

struct Found {
  std::unique_ptr<Tokenizer> tokenizer;
  std::filesystem::path file;
};

// By the files that are there.
Found find_tokenizer(const std::filesystem::path& directory, const TokenizerConfig& config) {
  const std::filesystem::path model = directory / "tokenizer.model";
  const std::filesystem::path vocabulary = directory / "vocab.json";
  const std::filesystem::path merges = directory / "merges.txt";
  const std::filesystem::path json = directory / "tokenizer.json";
  if (std::filesystem::exists(model)) return {load_sentencepiece(model, config), model};
  if (std::filesystem::exists(vocabulary) && std::filesystem::exists(merges)) {
    return {load_byte_bpe(vocabulary, merges, config), vocabulary};
  }
  if (std::filesystem::exists(json)) return {load_byte_bpe(json, config), json};
  if (std::filesystem::exists(vocabulary)) {
    throw InputError(merges.string() + ": missing, beside vocab.json");
  }
  if (std::filesystem::exists(merges)) {
    throw InputError(vocabulary.string() + ": missing, beside merges.txt");
  }
  throw InputError(model.string() +
                   ": missing, and so are vocab.json with merges.txt, and tokenizer.json");
}

}  // namespace

std::vector<std::int32_t> Tokenizer::encode_with_bos(std::string_view text) const {
  std::vector<std::int32_t> ids = encode(text);
  if (bos() >= 0) ids.insert(ids.begin(), bos());
  return ids;
}

TokenizerConfig read_tokenizer_config(const std::filesystem::path& directory) {
  TokenizerConfig config;
  config.file = directory / "tokenizer_config.json";
  if (!std::filesystem::exists(config.file)) return config;
  const nlohmann::json object = read_json_file(config.file, kMaxConfigBytes);
  const auto fail = [&](const std::string& what) {
    throw InputError(config.file.string() + ": " + what);
  };
  if (!object.is_object()) fail("not a JSON object");
  const auto boolean = [&](const char* key) -> std::optional<bool> {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return std::nullopt;
    if (!found->is_boolean()) fail(std::string(key) + ": must be true or false");
    return found->get<bool>();
  };
  config.add_bos = boolean("add_bos_token");
  config.add_prefix_space = boolean("add_prefix_space");
  if (const auto found = object.find("bos_token"); found != object.end() && !found->is_null()) {
    // A name, or an object that describes the token.
    const bool described = found->is_object() && found->contains("content");
    const nlohmann::json& name = described ? found->at("content") : *found;
    if (!name.is_string())
      fail("bos_token: must be a string, or an object with a string \"content\"");
    config.bos = name.get<std::string>();
  }
  return config;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory) {
  TokenizerConfig config = read_tokenizer_config(directory);
  std::int64_t rows = std::numeric_limits<std::int64_t>::max();
  if (std::filesystem::exists(directory / "config.json")) {
    const ModelConfig model = read_model_config(directory);
    rows = model.vocabulary;
    // The first files of OPT came without this key, and the model was trained with the token.
    if (model.architecture == Architecture::kOpt && !config.add_bos) {
      config.add_bos = true;
      if (!config.bos) config.bos = "</s>";
    }
  }
  Found found = find_tokenizer(directory, config);
  if (found.tokenizer->vocabulary() > rows) {
    throw InputError(found.file.string() + ": " + std::to_string(found.tokenizer->vocabulary()) +
                     " pieces, but vocab_size in config.json is " + std::to_string(rows));
  }
  return std::move(found.tokenizer);
}

std::string tokenizer_content(const std::filesystem::path& directory) {
  Xxh3 hash;
  for (const char* name :
       {"tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
        "special_tokens_map.json", "added_tokens.json"}) {
    const std::filesystem::path file = directory / name;
    if (!std::filesystem::is_regular_file(file)) continue;
    const std::string line = std::string(name) + " " + xxh3_hex_of_file(file) + "\n";
    hash.update(std::as_bytes(std::span(line)));
  }
  return hash.hex();
}

std::vector<std::filesystem::path> tokenizer_files(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  for (const char* name : {"tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt",
                           "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                           "chat_template.jinja", "generation_config.json"}) {
    if (std::filesystem::is_regular_file(directory / name)) files.push_back(directory / name);
  }
  return files;
}

}  // namespace roundhouse
