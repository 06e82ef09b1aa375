#include "model/tokenizer/special_tokens.h"

#include <algorithm>
#include <charconv>
#include <map>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 28;
constexpr std::int64_t kMaxId = (1 << 24) - 1;

// Where the white space that ends at byte `end` begins, not before `least`.
std::size_t before_white_space(std::string_view text, std::size_t least, std::size_t end) {
  while (end > least) {
    std::size_t begin = end - 1;
    while (begin > least && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    if (!is_white_space(code_point_at(text, begin).value)) break;
    end = begin;
  }
  return end;
}

std::size_t behind_white_space(std::string_view text, std::size_t begin) {
  while (begin < text.size()) {
    const CodePoint c = code_point_at(text, begin);
    if (!is_white_space(c.value)) break;
    begin += c.bytes;
  }
  return begin;
}

// Is there no character of a word on either side?
bool stands_alone(std::string_view text, std::size_t begin, std::size_t end) {
  if (end < text.size() && is_word_character(code_point_at(text, end).value)) return false;
  if (begin == 0) return true;
  do --begin;
  while ((static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80);
  return !is_word_character(code_point_at(text, begin).value);
}

bool flag(const json& object, const char* key) { return object.value(key, json(false)) == true; }

// A token as an object describes it: {"content": "</s>", "lstrip": false, ..}
SpecialToken described(const json& object, const std::string& where) {
  const json name = object.is_object() ? object.value("content", json()) : json();
  if (!name.is_string()) throw InputError(where + "a token without \"content\"");
  const auto text = name.get<std::string>();
  const bool special = flag(object, "special");
  return {.text = text,
          .strips_left = flag(object, "lstrip"),
          .strips_right = flag(object, "rstrip"),
          .single_word = flag(object, "single_word"),
          .special = special,
          .normalized = object.value("normalized", json(!special)) == true};
}

std::int32_t checked_id(std::int64_t id, const std::string& token, const std::string& where) {
  if (id < 0 || id > kMaxId) {
    throw InputError(fmt::format("{}token {}: its id is not an integer from 0 to {}", where,
                                 in_quotes(token), kMaxId));
  }
  return static_cast<std::int32_t>(id);
}

std::int32_t id_of_json(const json& id, const std::string& token, const std::string& where) {
  return checked_id(id.is_number_integer() ? id.get<std::int64_t>() : -1, token, where);
}

json read_if_there(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return json::object();
  json object = read_json_file(file, kMaxFileBytes);
  if (!object.is_object()) throw InputError(file.string() + ": not a JSON object");
  return object;
}

}  // namespace

void SpecialTokens::add(SpecialToken token) {
  if (token.text.empty()) return;
  const std::string text = token.text;
  const auto [place, is_new] = by_length_[text.size()].try_emplace(text, std::move(token));
  if (!is_new) return;
  begins_[static_cast<unsigned char>(text.front())] = true;
  strips_left_ = strips_left_ || place->second.strips_left;
  if (place->second.single_word) {
    begins_of_words_.insert(code_point_at(text, 0).value);
    std::size_t last = text.size() - 1;
    while (last > 0 && (static_cast<unsigned char>(text[last]) & 0xc0) == 0x80) --last;
    ends_of_words_.insert(code_point_at(text, last).value);
  }
}

std::optional<SpecialTokens::Found> SpecialTokens::find(std::string_view text, std::size_t least,
                                                        std::size_t from, std::size_t until) const {
  for (std::size_t i = from; i < until; ++i) {
    if (!begins_[static_cast<unsigned char>(text[i])]) continue;
    for (const auto& [length, tokens] : by_length_) {
      if (length > text.size() - i) continue;
      const auto found = tokens.find(text.substr(i, length));
      if (found == tokens.end()) continue;
      const SpecialToken& token = found->second;
      std::size_t end = i + length;
      if (token.single_word && !stands_alone(text, i, end)) {
        i = end - 1;  // what begins within it is none either
        break;
      }
      if (token.strips_right) end = behind_white_space(text, end);
      return Found{token.strips_left ? before_white_space(text, least, i) : i, end, &token};
    }
  }
  return std::nullopt;
}

std::size_t SpecialTokens::horizon(std::string_view text, std::size_t end) const {
  return strips_left_ ? std::min(behind_white_space(text, end) + 1, text.size()) : end;
}

std::vector<SpecialToken> read_special_tokens(
    const TokenizerConfig& config, const std::vector<std::pair<std::string, std::string>>& defaults,
    const std::function<std::optional<std::int32_t>(const std::string&)>& id_of) {
  std::vector<SpecialToken> tokens;
  const std::filesystem::path directory = config.file.parent_path();
  const json settings = read_if_there(config.file);
  {
    const std::string where = config.file.string() + ": added_tokens_decoder: ";
    const json added = settings.value("added_tokens_decoder", json::object());
    if (!added.is_object()) throw InputError(where + "not an object of ids and tokens");
    for (const auto& [number, object] : added.items()) {
      SpecialToken token = described(object, where);
      std::int64_t id = -1;
      const auto [stop, error] = std::from_chars(number.data(), number.data() + number.size(), id);
      const bool whole = error == std::errc{} && stop == number.data() + number.size();
      token.id = checked_id(whole ? id : -1, token.text, where);
      tokens.push_back(std::move(token));
    }
  }
  {
    const std::filesystem::path file = directory / "tokenizer.json";
    const std::string where = file.string() + ": added_tokens: ";
    const json added = read_if_there(file).value("added_tokens", json::array());
    if (!added.is_array()) throw InputError(where + "not a list");
    for (const json& object : added) {
      SpecialToken token = described(object, where);
      token.id = id_of_json(object.value("id", json()), token.text, where);
      tokens.push_back(std::move(token));
    }
  }
  {
    const std::filesystem::path file = directory / "added_tokens.json";
    const json added = read_if_there(file);
    for (const auto& [name, id] : added.items()) {
      tokens.push_back({.text = name, .id = id_of_json(id, name, file.string() + ": ")});
    }
  }
  // Tokens with a role, in the vocabulary.
  const auto add_named = [&](const json& value, const std::string& where) {
    if (value.is_null()) return;
    SpecialToken token;
    if (value.is_string()) {
      token.text = value.get<std::string>();
    } else {
      token = described(value, where);
      token.special = true;
      token.normalized = flag(value, "normalized");
    }
    if (const auto id = id_of(token.text)) {
      token.id = *id;
      tokens.push_back(std::move(token));
    }
  };
  const std::filesystem::path map_file = directory / "special_tokens_map.json";
  const json map = read_if_there(map_file);
  for (const char* role : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
                           "cls_token", "mask_token"}) {
    if (settings.contains(role)) {
      add_named(settings[role], config.file.string() + ": " + role + ": ");
    } else if (map.contains(role)) {
      add_named(map[role], map_file.string() + ": " + role + ": ");
    } else if (const auto found =
                   std::ranges::find(defaults, role, &std::pair<std::string, std::string>::first);
               found != defaults.end()) {
      add_named(found->second, "");
    }
  }
  for (const auto& [object, file] : {std::pair(&settings, &config.file), {&map, &map_file}}) {
    const json more = object->value("additional_special_tokens", json());
    const std::string where = file->string() + ": additional_special_tokens: ";
    if (more.is_null()) continue;
    if (!more.is_array()) throw InputError(where + "not a list");
    for (const json& token : more) add_named(token, where);
  }
  return tokens;
}

}  // namespace roundhouse
