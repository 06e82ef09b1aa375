#include "model/tokenizer/bpe_model.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/byte_characters.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::int32_t kMaxId = (1 << 24) - 1;  // no vocabulary comes near

}  // namespace

BpeModel::BpeModel(const json& vocabulary, const std::string& where) {
  if (!vocabulary.is_object()) throw InputError(where + "not an object of tokens and ids");
  std::unordered_map<std::int32_t, const std::string*> names;
  for (auto entry = vocabulary.begin(); entry != vocabulary.end(); ++entry) {
    const std::string& token = entry.key();
    const json& id = entry.value();
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMaxId) {
      throw InputError(fmt::format("{}token {}: its id is not an integer from 0 to {}", where,
                                   in_quotes(token), kMaxId));
    }
    const auto number = id.get<std::int32_t>();
    const auto [other, is_new] = names.emplace(number, &token);
    if (!is_new) {
      throw InputError(fmt::format("{}tokens {} and {} have the same id {}", where,
                                   in_quotes(*other->second), in_quotes(token), number));
    }
    ids_.emplace(token, number);
    in_tokens_.add_all(token);
    if (!token.empty()) {
      const CodePoint first = code_point_at(token, 0);
      if (first.bytes == token.size()) characters_.emplace(first.value, number);
    }
    size_ = std::max(size_, number + 1);
  }
  for (unsigned byte = 0; byte < 256; ++byte)
    id_of_byte_[byte] = id_of(characters_of_bytes()[byte]).value_or(-1);
  fallback_.fill(-1);
}

std::optional<std::int32_t> BpeModel::id_of(std::string_view token) const {
  const auto found = ids_.find(token);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

void BpeModel::for_each(
    const std::function<void(const std::string&, std::int32_t)>& function) const {
  for (const auto& [token, id] : ids_) function(token, id);
}

void BpeModel::add_merge(const std::string& left, const std::string& right,
                         const std::string& where) {
  const auto find = [&](const std::string& token) {
    const auto id = id_of(token);
    if (!id) throw InputError(where + in_quotes(token) + " is not in the vocabulary");
    return *id;
  };
  const std::int32_t merged = find(left + right);
  if (!merges_.add(find(left), find(right), merged)) throw InputError(where + "stands twice");
  merged_.push_back(find(left));
  merged_.push_back(find(right));
}

void BpeModel::set(Settings settings, const std::string& where) {
  settings_ = std::move(settings);
  if (!settings_.unk_token.empty()) {
    const auto id = id_of(settings_.unk_token);
    if (!id) {
      throw InputError(where + "unk_token: " + in_quotes(settings_.unk_token) +
                       " is not in the vocabulary");
    }
    unk_ = *id;
  }
  if (settings_.byte_fallback) {
    for (unsigned byte = 0; byte < 256; ++byte)
      fallback_[byte] = id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
    all_fallbacks_ = std::ranges::count(fallback_, -1) == 0;
  }
  for (const std::int32_t id : merged_) {
    merges_fallbacks_ =
        merges_fallbacks_ || id == unk_ || std::ranges::find(fallback_, id) != fallback_.end();
  }
  merged_ = {};
}

void BpeModel::take_bytes(const std::string& where) {
  if (std::ranges::all_of(id_of_byte_, [](std::int32_t id) { return id < 0; }))
    throw InputError(where + "no token for any byte: not a byte-level BPE");
  bytes_ = true;
  all_bytes_ = std::ranges::count(id_of_byte_, -1) == 0;
  merges_.set_bytes(id_of_byte_);
  if (!settings_.ignore_merges) return;
  std::unordered_map<char32_t, char> byte_of;
  for (std::size_t byte = 0; byte < 256; ++byte)
    byte_of[code_point_at(characters_of_bytes()[byte], 0).value] = static_cast<char>(byte);
  whole_.reset(ids_.size());
  for (const auto& [token, id] : ids_) {
    std::string word;
    bool known = true;
    for (std::size_t i = 0; known && i < token.size();) {
      const CodePoint c = code_point_at(token, i);
      const auto byte = byte_of.find(c.value);
      known = byte != byte_of.end();
      if (known) word += byte->second;
      i += c.bytes;
    }
    if (known) whole_.add(hash_of_word(word));
  }
}

std::vector<unsigned> BpeModel::missing_bytes() const {
  std::vector<unsigned> missing;
  if (!bytes_ || unk_ >= 0) return missing;
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (id_of_byte_[byte] < 0) missing.push_back(byte);
  }
  return missing;
}

bool BpeModel::may_cut(char32_t left, char32_t right) const {
  // What is dropped, or becomes one with its neighbour, is not seen by what stands beside it.
  return !bytes_ && !merges_fallbacks_ && !in_tokens_.contains(left, right) && is_known(left) &&
         is_known(right);
}

std::optional<std::int32_t> BpeModel::whole(std::string_view word, std::uint64_t hash) const {
  if (!settings_.ignore_merges) return std::nullopt;
  if (!bytes_) return id_of(word);
  if (!whole_.may_contain(hash)) return std::nullopt;
  std::string characters;
  for (const char c : word) characters += characters_of_bytes()[static_cast<unsigned char>(c)];
  return id_of(characters);
}

void BpeModel::add_known(std::int32_t id, bool& unknown, std::vector<std::int32_t>& ids) const {
  if (unknown) ids.push_back(unk_);
  unknown = false;
  ids.push_back(id);
}

void BpeModel::add_missing(std::string_view character, bool& unknown,
                           std::vector<std::int32_t>& ids) const {
  const auto spelled = [&](char c) { return fallback_[static_cast<unsigned char>(c)]; };
  if (std::ranges::all_of(character, [&](char c) { return spelled(c) >= 0; })) {
    // An unknown one before it comes behind it, as in Hugging Face's.
    for (const char c : character) ids.push_back(spelled(c));
    return;
  }
  if (unk_ < 0) return;  // dropped
  if (unknown && !settings_.fuse_unk) ids.push_back(unk_);
  unknown = true;
}

void BpeModel::encode(std::string_view word, BytePairMerges::Work& work) const {
  if (bytes_ && all_bytes_) return merges_.merge_bytes(word, work);
  bool unknown = false;
  if (bytes_) {
    for (const char c : word) {
      const auto byte = static_cast<unsigned char>(c);
      if (id_of_byte_[byte] >= 0) {
        add_known(id_of_byte_[byte], unknown, work.ids);
      } else {
        add_missing(characters_of_bytes()[byte], unknown, work.ids);
      }
    }
  } else {
    for (std::size_t i = 0; i < word.size();) {
      const CodePoint c = code_point_at(word, i);
      const auto known = characters_.find(c.value);
      if (known != characters_.end()) {
        add_known(known->second, unknown, work.ids);
      } else {
        add_missing(word.substr(i, c.bytes), unknown, work.ids);
      }
      i += c.bytes;
    }
  }
  if (unknown) work.ids.push_back(unk_);
  merges_.merge(work);
}

}  // namespace roundhouse
