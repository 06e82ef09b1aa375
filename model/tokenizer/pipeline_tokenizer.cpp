#include "model/tokenizer/pipeline_tokenizer.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::int32_t kMaxId = (1 << 24) - 1;

}  // namespace

PipelineTokenizer::PipelineTokenizer(Normalizer normalizer, PreTokenizers words, BpeModel model)
    : normalizer_(std::move(normalizer)), words_(std::move(words)), model_(std::move(model)) {}

std::optional<std::int32_t> PipelineTokenizer::id_of_token(const std::string& name) const {
  if (const auto found = added_.find(name); found != added_.end()) return found->second;
  return model_.id_of(name);
}

void PipelineTokenizer::add_token(const std::string& token, const json& id,
                                  const std::string& where) {
  if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMaxId) {
    throw InputError(fmt::format("{}token {}: its id is not an integer from 0 to {}", where,
                                 in_quotes(token), kMaxId));
  }
  const auto number = id.get<std::int32_t>();
  const auto known = id_of_token(token);
  if (known && *known != number) {
    throw InputError(where + "token " + in_quotes(token) + " has two ids");
  }
  if (known) return;
  const auto [other, is_new] = names_of_added_.emplace(number, token);
  if (!is_new) {
    throw InputError(fmt::format("{}tokens {} and {} have the same id {}", where,
                                 in_quotes(other->second), in_quotes(token), number));
  }
  added_.emplace(token, number);
}

void PipelineTokenizer::set_around(const TokenizerConfig& config,
                                   const std::optional<std::string>& first,
                                   const std::optional<std::string>& last) {
  const std::string where = config.file.string() + ": ";
  const auto token = [&](std::optional<bool> wanted, const std::optional<std::string>& named,
                         const std::optional<std::string>& other, const std::string& kind) {
    if (!wanted.value_or(other.has_value())) return -1;
    const std::optional<std::string>& name = named ? named : other;
    if (!name)
      throw InputError(where + "add_" + kind + "_token is true, but there is no " + kind +
                       "_token");
    const auto id = id_of_token(*name);
    if (!id) {
      throw InputError(where + kind + "_token: " + in_quotes(*name) + " is not in the vocabulary");
    }
    return *id;
  };
  bos_ = token(config.add_bos, config.bos, first, "bos");
  eos_ = token(config.add_eos, config.eos, last, "eos");
}

std::vector<std::string> PipelineTokenizer::problems() const {
  const std::vector<unsigned> missing = model_.missing_bytes();
  if (missing.empty()) return {};
  constexpr std::size_t kShown = 32;
  std::string names;
  for (std::size_t i = 0; i < std::min(missing.size(), kShown); ++i)
    names += fmt::format(" {:02x}", missing[i]);
  if (missing.size() > kShown) names += " ..";
  return {
      fmt::format("{} of the 256 bytes have no token and are dropped from texts, as by Hugging "
                  "Face's tokenizers:{}",
                  missing.size(), names)};
}

void PipelineTokenizer::set_normalized_tokens(std::vector<SpecialToken> tokens) {
  for (SpecialToken& token : tokens) {
    in_normalized_.add_all(token.text);
    std::string own;
    token.text = normalizer_.apply(token.text, PieceStart::kText, own);
    in_normalized_.add_all(token.text);
    // White space, and what is part of a word, is looked at beyond the token.
    strips_ = strips_ || token.strips_left || token.strips_right || token.single_word;
    normalized_.add(std::move(token));
  }
}

bool PipelineTokenizer::may_cut(char32_t left, char32_t right) const {
  if (in_normalized_.contains(left, right) || strips_) return false;
  const auto normalized = normalizer_.edges(left, right);
  if (!normalized || in_normalized_.contains(normalized->first, normalized->second)) return false;
  switch (words_.cut(normalized->first, normalized->second)) {
    case Cut::kNo:
      return false;
    case Cut::kBetween:
      return true;
    case Cut::kHarmless:
      break;
  }
  const auto [before, after] = words_.edges(normalized->first, normalized->second);
  return !model_.whole_words() && model_.may_cut(before, after);
}

void PipelineTokenizer::append_part(std::string_view part, PieceStart start, WordCache& cache,
                                    std::vector<std::int32_t>& ids) const {
  std::string own;
  const std::string_view text = normalizer_.apply(part, start, own);
  Work work;
  std::size_t at = 0;
  while (!normalized_.empty()) {
    const auto found = normalized_.find(text, at, at, text.size());
    if (!found) break;
    check_row(*found->token);
    append_words(text.substr(at, found->begin - at), start, cache, work, ids);
    ids.push_back(found->token->id);
    at = found->end;
    start = PieceStart::kBehindSpecial;
  }
  append_words(text.substr(at), start, cache, work, ids);
}

void PipelineTokenizer::append_words(std::string_view text, PieceStart start, WordCache& cache,
                                     Work& work, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  work.words.text = text;
  work.words.start = start;
  words_.apply(work.words);
  const std::vector<Words::Range>& ranges = work.words.ranges;
  if (!model_.takes_bytes()) {
    for (const Words::Range& range : ranges)
      append_characters(work.words.at(range), cache, work, ids);
    return;
  }
  // Memory is slower than all else here: the cache is told what will be asked for.
  constexpr std::size_t kAhead = 8;
  std::array<WordCache::Key, kAhead> keys;
  for (std::size_t i = 0; i < ranges.size() + kAhead; ++i) {
    WordCache::Key& key = keys[i % kAhead];
    if (i >= kAhead && i - kAhead < ranges.size()) append_word(key, cache, work, ids);
    if (i < ranges.size()) key = cache.key(work.words.at(ranges[i]));
  }
}

// Between characters that no token has side by side nothing merges: what lies between such places is looked up by itself, for a
// text without words may be one long one.
void PipelineTokenizer::append_characters(std::string_view word, WordCache& cache, Work& work,
                                          std::vector<std::int32_t>& ids) const {
  if (const auto whole = model_.whole(word, 0)) {
    ids.push_back(*whole);
    return;
  }
  CodePoint left = code_point_at(word, 0);
  std::size_t begin = 0;
  for (std::size_t end = left.bytes; end < word.size(); end += left.bytes) {
    const CodePoint right = code_point_at(word, end);
    if (model_.may_cut(left.value, right.value)) {
      append_word(cache.key(word.substr(begin, end - begin)), cache, work, ids);
      begin = end;
    }
    left = right;
  }
  append_word(cache.key(word.substr(begin)), cache, work, ids);
}

void PipelineTokenizer::append_word(const WordCache::Key& key, WordCache& cache, Work& work,
                                    std::vector<std::int32_t>& ids) const {
  if (const auto known = cache.find(key)) {
    ids.insert(ids.end(), known->begin(), known->end());
    return;
  }
  auto& own = work.merges.ids;
  own.clear();
  const auto whole = model_.takes_bytes() ? model_.whole(key.word, key.hash) : std::nullopt;
  if (whole) {
    own.push_back(*whole);
  } else {
    model_.encode(key.word, work.merges);
  }
  cache.add(key, own);
  ids.insert(ids.end(), own.begin(), own.end());
}

}  // namespace roundhouse
