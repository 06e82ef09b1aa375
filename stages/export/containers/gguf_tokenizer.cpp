#include <algorithm>
#include <array>
#include <optional>

#include <fmt/format.h>

#include "base/file.h"
#include "base/json_file.h"
#include "model/tokenizer/sentencepiece_vocabulary.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_files.h"
#include "stages/export/containers/gguf_container.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kMaxBytes = std::size_t{1} << 26;

// As SentencePiece numbers them, and GGUF.
enum Type : std::int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<float> scores;  // SentencePiece alone
  std::vector<std::int32_t> types;

  // Rows without a token have one that no text has.
  explicit Vocabulary(std::int64_t rows)
      : scores(static_cast<std::size_t>(rows), kNoScore),
        types(static_cast<std::size_t>(rows), kUnused) {
    for (std::int64_t id = 0; id < rows; ++id) tokens.push_back(fmt::format("[PAD{}]", id));
  }
  void set(std::int64_t id, const std::string& text, std::int32_t type, float score,
           const std::string& where) {
    if (id < 0 || id >= std::ssize(tokens)) {
      throw InputError(
          fmt::format("{}: token {} has the id {}, and the model {} rows; GGUF has a token for "
                      "each row and no other",
                      where, in_quotes(text), id, tokens.size()));
    }
    const auto at = static_cast<std::size_t>(id);
    tokens[at] = text;
    types[at] = type;
    scores[at] = score;
  }
  static constexpr float kNoScore = -1000.0f;
};

bool is_byte_level(const json& step, bool splits) {
  return step.is_object() && step.value("type", json()) == "ByteLevel" &&
         step.value("add_prefix_space", json(true)) == false &&
         step.value("use_regex", json(true)) == splits;
}

bool is_split(const json& step, const char* expression) {
  return step.is_object() && step.value("type", json()) == "Split" &&
         step.value("behavior", json()) == "Isolated" &&
         step.value("invert", json(false)) == false &&
         step.value("/pattern/Regex"_json_pointer, json()) == expression;
}

bool is_digits(const json& step) {
  return step.is_object() && step.value("type", json()) == "Digits" &&
         step.value("individual_digits", json()) == true;
}

// llama.cpp's name for how words are cut, and whether it looks a word up whole first, then. Nothing: it has none.
struct Words {
  const char* name;
  bool ignores_merges;
};
std::optional<Words> words_of(const json& pre_tokenizer) {
  constexpr const char* kLlama3 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  constexpr const char* kTekken =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  if (is_byte_level(pre_tokenizer, true)) return Words{"gpt-2", false};
  if (!pre_tokenizer.is_object() || pre_tokenizer.value("type", json()) != "Sequence")
    return std::nullopt;
  const json steps = pre_tokenizer.value("pretokenizers", json());
  if (!steps.is_array() || steps.size() != 2) return std::nullopt;
  if (is_digits(steps[0]) && is_byte_level(steps[1], true)) return Words{"smollm", false};
  if (!is_byte_level(steps[1], false)) return std::nullopt;
  if (is_split(steps[0], kLlama3)) return Words{"llama-bpe", true};
  if (is_split(steps[0], kTekken)) return Words{"tekken", true};
  return std::nullopt;
}

// "LEFT RIGHT", as lines of merges.txt.
std::vector<std::string> merges_of(const json& merges, const std::string& where) {
  if (!merges.is_array()) throw InputError(where + ": no list \"model.merges\"");
  std::vector<std::string> lines;
  for (const json& merge : merges) {
    const bool both =
        merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string();
    if (!merge.is_string() && !both) throw InputError(where + ": model.merges: not two tokens");
    lines.push_back(both ? merge[0].get<std::string>() + " " + merge[1].get<std::string>()
                         : merge.get<std::string>());
    if (std::ranges::count(lines.back(), ' ') != 1) {
      throw InputError(where + ": model.merges: a token in " + in_quotes(lines.back()) +
                       " has a space in it, and GGUF writes one between the two");
    }
  }
  return lines;
}

std::vector<std::string> lines_of_merges(const fs::path& file) {
  std::vector<std::string> lines;
  LineReader reader(file);
  for (std::string line; reader.next(line);) {
    if (line.starts_with("#version") && lines.empty()) continue;
    if (line.ends_with('\r')) line.pop_back();
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

void add_vocabulary(const json& vocabulary, const std::string& where, Vocabulary& to) {
  if (!vocabulary.is_object()) throw InputError(where + ": no object of tokens");
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer()) throw InputError(where + ": " + in_quotes(token) + ": not an id");
    to.set(id.get<std::int64_t>(), token, kNormal, Vocabulary::kNoScore, where);
  }
}

// The text of a role in tokenizer_config.json: a string, or an object with it.
std::string role_of(const json& config, const std::string& role) {
  const json value = config.is_object() ? config.value(role, json()) : json();
  const json text = value.is_object() ? value.value("content", json()) : value;
  return text.is_string() ? text.get<std::string>() : "";
}

json json_or_null(const fs::path& file) {
  return fs::exists(file) ? read_json_file(file, kMaxBytes) : json();
}

void add_roles(const fs::path& directory, const Tokenizer& tokenizer, std::int64_t rows,
               GgufKeys& keys) {
  const json config = json_or_null(directory / "tokenizer_config.json");
  const json model = json_or_null(directory / "config.json");
  constexpr std::array<std::pair<const char*, const char*>, 4> kRoles = {
      {{"bos", "bos"}, {"eos", "eos"}, {"unk", "unknown"}, {"pad", "padding"}}};
  for (const auto& [role, theirs] : kRoles) {
    std::int64_t id = -1;
    if (const std::string text = role_of(config, std::string(role) + "_token"); !text.empty())
      id = tokenizer.id_of_token(text).value_or(-1);
    json given = model.is_object() ? model.value(std::string(role) + "_token_id", json()) : json();
    if (given.is_array() && !given.empty()) given = json(given[0]);
    if (id < 0 && given.is_number_integer()) id = given.get<std::int64_t>();
    if (id >= 0 && id < rows)
      keys.add("tokenizer.ggml." + std::string(theirs) + "_token_id",
               static_cast<std::uint32_t>(id));
  }
  keys.add("tokenizer.ggml.add_bos_token", tokenizer.bos() >= 0);
  keys.add("tokenizer.ggml.add_eos_token", tokenizer.eos() >= 0);
  std::string chat = role_of(config, "chat_template");
  if (fs::exists(directory / "chat_template.jinja"))
    chat = read_text_file(directory / "chat_template.jinja", kMaxBytes);
  if (!chat.empty()) keys.add("tokenizer.chat_template", std::string_view(chat));
}

}  // namespace

void add_tokenizer_keys(const fs::path& directory, std::int64_t rows, GgufKeys& keys) {
  const TokenizerConfig config = read_tokenizer_config(directory);
  const std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(directory);
  Vocabulary vocabulary(rows);
  std::vector<std::string> merges;
  const fs::path model = directory / "tokenizer.model", file = directory / "tokenizer.json",
                 words = directory / "vocab.json";
  const bool pieces = fs::exists(model);
  std::string cut = "default";
  if (pieces) {
    std::int64_t id = 0;
    for (const SentencePiece& piece : sentencepiece_vocabulary(model))
      vocabulary.set(id++, piece.text, piece.type, piece.score, model.string());
  } else if (fs::exists(file)) {
    const json object = read_json_file(file, kMaxBytes);
    const json bpe = object.is_object() ? object.value("model", json()) : json();
    if (!bpe.is_object()) throw InputError(file.string() + ": no object \"model\"");
    const std::optional<Words> known = words_of(object.value("pre_tokenizer", json()));
    const bool ignores = bpe.value("ignore_merges", json(false)) == true;
    if (!known || !object.value("normalizer", json()).is_null() ||
        known->ignores_merges != ignores) {
      throw InputError(file.string() +
                       ": no pre-tokenizer of llama.cpp that we know (gpt-2, smollm, llama-bpe, "
                       "tekken) cuts words as this file does; use another format, or add the "
                       "tokenizer.model that it was made of");
    }
    cut = known->name;
    add_vocabulary(bpe.value("vocab", json()), file.string() + ": model.vocab", vocabulary);
    merges = merges_of(bpe.value("merges", json()), file.string());
  } else if (fs::exists(words)) {
    cut = "gpt-2";
    add_vocabulary(read_json_file(words, kMaxBytes), words.string(), vocabulary);
    merges = lines_of_merges(directory / "merges.txt");
  }
  for (const SpecialToken& token : read_special_tokens(
           config, {}, [&](const std::string& name) { return tokenizer->id_of_token(name); }))
    vocabulary.set(token.id, token.text, token.special ? kControl : kUserDefined,
                   Vocabulary::kNoScore, directory.string());

  keys.add("tokenizer.ggml.model", std::string_view(pieces ? "llama" : "gpt2"));
  keys.add("tokenizer.ggml.pre", std::string_view(cut));
  keys.add("tokenizer.ggml.tokens", vocabulary.tokens);
  if (pieces) keys.add("tokenizer.ggml.scores", vocabulary.scores);
  keys.add("tokenizer.ggml.token_type", vocabulary.types);
  if (!pieces) keys.add("tokenizer.ggml.merges", merges);
  if (pieces) keys.add("tokenizer.ggml.add_space_prefix", config.add_prefix_space.value_or(true));
  add_roles(directory, *tokenizer, rows, keys);
}

}  // namespace roundhouse
