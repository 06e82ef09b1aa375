#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <limits>
#include <unordered_set>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/json_file.h"
#include "model/model_config.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

constexpr std::size_t kMaxConfigBytes = std::size_t{1} << 24;
constexpr std::size_t kMaxVocabularyBytes = std::size_t{1} << 26;
constexpr std::size_t kMaxPieceBytes = std::size_t{1} << 24;

using Roles = std::vector<std::pair<std::string, std::string>>;

struct Found {
  std::unique_ptr<Tokenizer> tokenizer;
  std::filesystem::path file;
  std::string kind;  // for people
  Roles defaults;    // the special tokens of this kind if no file names them
  std::vector<std::string>
      classes;  // Hugging Face's, that do the same; empty: the file says it all
  std::vector<std::string> warnings;
};

// Every token of the other file has the same id in tokenizer.json.
void check_same(const Tokenizer& tokenizer, const std::filesystem::path& file,
                const std::filesystem::path& other, const std::string& token, std::int32_t id) {
  const auto known = tokenizer.id_of_token(token);
  if (known == id) return;
  throw InputError(
      fmt::format("{} and {} have other vocabularies: token {} is {} in the first and {} in the "
                  "second. Remove the one that is not this model's",
                  file.string(), other.string(), in_quotes(token),
                  known ? std::to_string(*known) : "not there", id));
}

// By the files that are there.
Found find_tokenizer(const std::filesystem::path& directory, const TokenizerConfig& config) {
  const std::filesystem::path model = directory / "tokenizer.model";
  const std::filesystem::path vocabulary = directory / "vocab.json";
  const std::filesystem::path merges = directory / "merges.txt";
  const std::filesystem::path json = directory / "tokenizer.json";
  const Roles gpt2 = {{"bos_token", "<|endoftext|>"},
                      {"eos_token", "<|endoftext|>"},
                      {"unk_token", "<|endoftext|>"}};
  if (std::filesystem::exists(json)) {
    Found found{load_tokenizer_json(json, config), json, "BPE", {}, {}, {}};
    if (std::filesystem::exists(model)) {
      std::vector<std::pair<std::string, std::int32_t>> pieces;
      try {
        pieces = sentencepiece_pieces(model);
      } catch (const InputError& error) {
        found.warnings.push_back(std::string(error.what()) + "; texts are tokenized by " +
                                 json.string() + ", and the two are not compared");
      }
      for (const auto& [piece, id] : pieces) check_same(*found.tokenizer, json, model, piece, id);
    }
    if (std::filesystem::exists(vocabulary)) {
      const nlohmann::json tokens = read_json_file(vocabulary, kMaxVocabularyBytes);
      if (!tokens.is_object())
        throw InputError(vocabulary.string() + ": not an object of tokens and ids");
      for (const auto& [token, id] : tokens.items()) {
        check_same(*found.tokenizer, json, vocabulary, token,
                   id.is_number_integer() ? id.get<std::int32_t>() : -1);
      }
    }
    return found;
  }
  if (std::filesystem::exists(model)) {
    return {load_sentencepiece(model, config),
            model,
            "SentencePiece",
            {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}},
            {"LlamaTokenizer", "CodeLlamaTokenizer", "PreTrainedTokenizer", "TokenizersBackend"},
            {}};
  }
  if (std::filesystem::exists(vocabulary) && std::filesystem::exists(merges)) {
    return {load_byte_bpe(vocabulary, merges, config),
            vocabulary,
            "BPE of bytes",
            gpt2,
            {"GPT2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend"},
            {}};
  }
  if (std::filesystem::exists(vocabulary)) {
    throw InputError(merges.string() + ": missing, beside vocab.json");
  }
  if (std::filesystem::exists(merges)) {
    throw InputError(vocabulary.string() + ": missing, beside merges.txt");
  }
  throw InputError(json.string() +
                   ": missing, and so are tokenizer.model, and vocab.json with merges.txt");
}

// Each name once, as the first that declares it has it.
void sort_special_tokens(Tokenizer& tokenizer, std::vector<SpecialToken> tokens,
                         bool all_but_special, std::int64_t rows) {
  SpecialTokens plain;
  std::vector<SpecialToken> normalized;
  std::unordered_set<std::string> names;
  for (SpecialToken& token : tokens) {
    if (token.text.empty() || !names.insert(token.text).second) continue;
    if (all_but_special && (token.special || !tokenizer.has_normalized_tokens())) continue;
    if (token.normalized && tokenizer.has_normalized_tokens()) {
      normalized.push_back(std::move(token));
    } else {
      plain.add(std::move(token));
    }
  }
  tokenizer.set_special_tokens(std::move(plain), rows);
  tokenizer.set_normalized_tokens(std::move(normalized));
}

}  // namespace

void Tokenizer::set_special_tokens(SpecialTokens tokens, std::int64_t rows) {
  special_tokens_ = std::move(tokens);
  rows_ = rows;
}

void Tokenizer::append(const TextPiece& piece, WordCache& cache,
                       std::vector<std::int32_t>& ids) const {
  if (piece.special != nullptr) {
    ids.push_back(piece.special->id);
  } else {
    append_part(piece.text, piece.start, cache, ids);
  }
}

void Tokenizer::check_row(const SpecialToken& token) const {
  if (rows_ < 0 || token.id < rows_) return;
  throw InputError(fmt::format(
      "a text with the special token {}: its id is {}, and vocab_size in config.json is {}",
      in_quotes(token.text), token.id, rows_));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  if (!is_utf8(text)) throw InputError("a text that is not UTF-8 cannot be tokenized");
  std::vector<std::int32_t> ids;
  WordCache cache;
  PieceCutter pieces(*this, text);
  while (const auto piece = pieces.next()) append(*piece, cache, ids);
  return ids;
}

std::vector<std::int32_t> Tokenizer::encode_document(std::string_view text) const {
  std::vector<std::int32_t> ids = encode(text);
  if (bos() >= 0) ids.insert(ids.begin(), bos());
  if (eos() >= 0) ids.push_back(eos());
  return ids;
}

PieceCutter::PieceCutter(const Tokenizer& tokenizer, std::string_view text, std::size_t bytes,
                         PieceStart start)
    : tokenizer_(tokenizer), text_(text), bytes_(bytes), start_(start) {}

std::optional<TextPiece> PieceCutter::next() {
  if (at_ == text_.size()) return std::nullopt;
  if (special_ && special_->begin == at_) {
    tokenizer_.check_row(*special_->token);
    const TextPiece piece{text_.substr(at_, special_->end - at_), special_->token, start_};
    at_ = special_->end;
    start_ = PieceStart::kBehindSpecial;
    special_.reset();
    searched_ = at_;
    return piece;
  }
  const std::size_t limit = special_ ? special_->begin : text_.size();
  std::size_t end = limit;
  if (limit - at_ > bytes_) {
    const auto continues = [&](std::size_t i) {
      return (static_cast<unsigned char>(text_[i]) & 0xc0) == 0x80;
    };
    end = at_ + bytes_ - 1;  // of the last character before the cut
    while (continues(end)) --end;
    for (CodePoint left = code_point_at(text_, end); (end += left.bytes) < limit;) {
      const CodePoint right = code_point_at(text_, end);
      if (tokenizer_.special_tokens().may_cut(left.value, right.value) &&
          tokenizer_.may_cut(left.value, right.value))
        break;
      if (end - at_ > kMaxPieceBytes) {
        throw InputError(
            fmt::format("a text with more than {} MiB in which no word ends cannot be tokenized",
                        kMaxPieceBytes >> 20));
      }
      left = right;
    }
  }
  if (!special_ && end > searched_) {
    const std::size_t until = tokenizer_.special_tokens().horizon(text_, end);
    special_ = tokenizer_.special_tokens().find(text_, at_, std::max(at_, searched_), until);
    searched_ = until;
    if (special_ && special_->begin < end) {
      end = special_->begin;
      if (end == at_) return next();
    }
  }
  const TextPiece piece{text_.substr(at_, end - at_), nullptr, start_};
  at_ = end;
  start_ = PieceStart::kWithin;
  return piece;
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
  config.add_eos = boolean("add_eos_token");
  config.add_prefix_space = boolean("add_prefix_space");
  config.legacy = boolean("legacy");
  config.split_special_tokens = boolean("split_special_tokens").value_or(false);
  // A name, or an object that describes the token.
  const auto token = [&](const char* key) -> std::optional<std::string> {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return std::nullopt;
    const bool described = found->is_object() && found->contains("content");
    const nlohmann::json& name = described ? found->at("content") : *found;
    if (!name.is_string())
      fail(std::string(key) + ": must be a string, or an object with a string \"content\"");
    return name.get<std::string>();
  };
  config.bos = token("bos_token");
  config.eos = token("eos_token");
  // What would make other ids of a text, and is not done here.
  if (boolean("do_lower_case").value_or(false)) fail("do_lower_case: true is not supported");
  const nlohmann::json options = object.value("sp_model_kwargs", nlohmann::json());
  if (!options.empty()) fail("sp_model_kwargs: options of SentencePiece are not supported");
  const nlohmann::json name = object.value("tokenizer_class", nlohmann::json());
  if (name.is_string()) config.tokenizer_class = name.get<std::string>();
  const nlohmann::json code = object.value("auto_map", nlohmann::json());
  config.own_code = code.is_object() && code.contains("AutoTokenizer");
  return config;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory) {
  TokenizerConfig config = read_tokenizer_config(directory);
  bool opt = false;
  std::int64_t rows = std::numeric_limits<std::int64_t>::max();
  if (std::filesystem::exists(directory / "config.json")) {
    const ModelConfig model = read_model_config(directory);
    rows = model.vocabulary;
    // The first files of OPT came without this key, and the model was trained with the token.
    opt = model.architecture == Architecture::kOpt;
    if (opt && !config.add_bos) {
      config.add_bos = true;
      if (!config.bos) config.bos = "</s>";
    }
  }
  Found found = find_tokenizer(directory, config);
  if (opt) found.defaults = {{"bos_token", "</s>"}, {"eos_token", "</s>"}, {"pad_token", "<pad>"}};
  Tokenizer& tokenizer = *found.tokenizer;
  if (tokenizer.vocabulary() > rows) {
    throw InputError(fmt::format("{}: {} pieces, but vocab_size in config.json is {}",
                                 found.file.string(), tokenizer.vocabulary(), rows));
  }
  sort_special_tokens(
      tokenizer,
      read_special_tokens(config, found.defaults,
                          [&](const std::string& name) { return tokenizer.id_of_token(name); }),
      config.split_special_tokens, rows);
  std::vector<std::string> warnings = std::move(found.warnings);
  for (const std::string& problem : tokenizer.problems())
    warnings.push_back(found.file.string() + ": " + problem);
  tokenizer.set_source(
      fmt::format("{} ({}, {} pieces)", found.file.string(), found.kind, tokenizer.vocabulary()));
  const std::string instead = ", and texts are tokenized by " + found.file.filename().string();
  if (config.own_code) {
    warnings.push_back(config.file.string() +
                       ": auto_map: the model's own tokenizer code is not run" + instead);
  } else if (config.tokenizer_class && !found.classes.empty()) {
    std::string name = *config.tokenizer_class;
    if (name.ends_with("Fast")) name.resize(name.size() - 4);
    if (std::ranges::find(found.classes, name) == found.classes.end()) {
      warnings.push_back(config.file.string() + ": tokenizer_class: " +
                         in_quotes(*config.tokenizer_class) + " is not known" + instead);
    }
  }
  tokenizer.set_warnings(std::move(warnings));
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
