// The tokenizer of GPT-2 and OPT: byte-level BPE (Sennrich et al. 2016, "Neural Machine Translation of Rare Words with
// Subword Units", on bytes).
#include <algorithm>
#include <array>
#include <optional>
#include <queue>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "model/gpt2_words.h"
#include "model/json_file.h"
#include "model/tokenizer.h"
#include "model/tokenizer_files.h"
#include "model/utf8.h"

namespace roundhouse {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 26;
constexpr std::int32_t kMaxId = (1 << 24) - 1;  // no vocabulary comes near

class BpeTokenizer : public Tokenizer {
 public:
  // Tokens and their ids, then merges in the order of their ranks. Messages begin with `where`.
  BpeTokenizer(const json& vocabulary, const std::string& where) {
    if (!vocabulary.is_object()) throw InputError(where + "not an object of tokens and ids");
    std::unordered_map<std::int32_t, std::string> names;
    for (const auto& [token, value] : vocabulary.items()) {
      const std::int32_t id = add_token(token, value, where);
      const auto [other, is_new] = names.emplace(id, token);
      if (!is_new) {
        throw InputError(where + "tokens " + in_quotes(other->second) + " and " + in_quotes(token) +
                         " have the same id " + std::to_string(id));
      }
    }
    for (std::size_t byte = 0; byte < 256; ++byte) {
      const auto id = id_of(characters_of_bytes()[byte]);
      if (!id) {
        throw InputError(where + "no token for byte " + std::to_string(byte) +
                         ": not a byte-level BPE");
      }
      id_of_byte_[byte] = *id;
    }
  }

  std::int32_t add_token(const std::string& token, const json& id, const std::string& where) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() > kMaxId) {
      throw InputError(where + "token " + in_quotes(token) +
                       ": its id is not an integer from 0 to " + std::to_string(kMaxId));
    }
    const auto number = id.get<std::int32_t>();
    const auto [found, is_new] = ids_.emplace(token, number);
    if (!is_new && found->second != number) {
      throw InputError(where + "token " + in_quotes(token) + " has two ids");
    }
    size_ = std::max(size_, number + 1);
    return number;
  }

  void add_merge(const std::string& left, const std::string& right, const std::string& where) {
    const auto find = [&](const std::string& token) {
      const auto id = id_of(token);
      if (!id) throw InputError(where + in_quotes(token) + " is not in the vocabulary");
      return *id;
    };
    const Merge merge{static_cast<std::int32_t>(merges_.size()), find(left + right)};
    if (!merges_.emplace(pair_of(find(left), find(right)), merge).second) {
      throw InputError(where + "stands twice");
    }
  }

  void set_bos(const std::string& name, const std::string& where) {
    bos_ = token("bos_token", name, where);
  }
  void set_eos(const std::string& name, const std::string& where) {
    eos_ = token("eos_token", name, where);
  }
  void set_prefix_space(bool add) { prefix_space_ = add; }

  std::int32_t vocabulary() const override { return size_; }
  std::int32_t bos() const override { return bos_; }
  std::int32_t eos() const override { return eos_; }
  bool may_cut(char32_t left, char32_t right) const override { return gpt2_word_ends(left, right); }
  std::optional<std::int32_t> id_of_token(const std::string& name) const override {
    return id_of(name);
  }

 private:
  void append_part(std::string_view part, PieceStart start, WordCache& cache,
                   std::vector<std::int32_t>& ids) const override {
    std::string prefixed;
    if (prefix_space_ && start != PieceStart::kWithin && part.front() != ' ') {
      prefixed = " " + std::string(part);
      part = prefixed;
    }
    Work work;
    for (const std::string_view word : gpt2_words(part)) {
      if (const auto known = cache.find(word)) {
        ids.insert(ids.end(), known->begin(), known->end());
        continue;
      }
      const std::size_t before = ids.size();
      append_word(word, work, ids);
      cache.add(word, std::span(ids).subspan(before));
    }
  }

  std::int32_t token(const char* role, const std::string& name, const std::string& where) const {
    const auto id = id_of(name);
    if (!id) throw InputError(where + role + ": " + in_quotes(name) + " is not in the vocabulary");
    return *id;
  }

  struct Merge {
    std::int32_t rank;
    std::int32_t id;  // of what both become
  };
  // A word in the making: symbols in a list, from which merging takes some out.
  struct Symbol {
    std::int32_t id;
    int previous;  // -1: none
    int next;
  };
  // Two neighbours that could be merged; the lowest rank comes first, then the leftmost.
  struct Candidate {
    std::int32_t rank;
    int place;  // of the left one
    std::uint64_t pair;
    std::int32_t id;
    bool operator<(const Candidate& other) const {
      return std::pair(rank, place) > std::pair(other.rank, other.place);
    }
  };
  struct Work {
    std::vector<Symbol> symbols;
    std::priority_queue<Candidate> candidates;
  };

  static std::uint64_t pair_of(std::int32_t left, std::int32_t right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  std::optional<std::int32_t> id_of(const std::string& token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

  std::uint64_t pair_at(const std::vector<Symbol>& symbols, int place) const {
    const Symbol& left = symbols[static_cast<std::size_t>(place)];
    return pair_of(left.id, symbols[static_cast<std::size_t>(left.next)].id);
  }
  void consider(Work& work, int place) const {
    if (place < 0 || work.symbols[static_cast<std::size_t>(place)].next < 0) return;
    const std::uint64_t pair = pair_at(work.symbols, place);
    const auto found = merges_.find(pair);
    if (found == merges_.end()) return;
    work.candidates.push({found->second.rank, place, pair, found->second.id});
  }

  void append_word(std::string_view word, Work& work, std::vector<std::int32_t>& ids) const {
    const int n = static_cast<int>(word.size());
    work.symbols.clear();
    for (int i = 0; i < n; ++i) {
      const auto byte = static_cast<unsigned char>(word[static_cast<std::size_t>(i)]);
      work.symbols.push_back({id_of_byte_[byte], i - 1, i + 1 < n ? i + 1 : -1});
    }
    for (int i = 0; i < n; ++i) consider(work, i);
    while (!work.candidates.empty()) {
      const Candidate best = work.candidates.top();
      work.candidates.pop();
      Symbol& left = work.symbols[static_cast<std::size_t>(best.place)];
      // One of the two may have been merged with another neighbour since.
      if (left.id < 0 || left.next < 0 || pair_at(work.symbols, best.place) != best.pair) continue;
      Symbol& right = work.symbols[static_cast<std::size_t>(left.next)];
      left.id = best.id;
      left.next = right.next;
      right.id = -1;
      if (left.next >= 0) work.symbols[static_cast<std::size_t>(left.next)].previous = best.place;
      consider(work, left.previous);
      consider(work, best.place);
    }
    for (int i = 0; i >= 0; i = work.symbols[static_cast<std::size_t>(i)].next) {
      ids.push_back(work.symbols[static_cast<std::size_t>(i)].id);
    }
  }

  std::unordered_map<std::string, std::int32_t> ids_;
  std::unordered_map<std::uint64_t, Merge> merges_;
  std::array<std::int32_t, 256> id_of_byte_{};
  std::int32_t size_ = 0;
  std::int32_t bos_ = -1;
  std::int32_t eos_ = -1;
  bool prefix_space_ = false;
};

// "LEFT RIGHT"
void add_merge_line(BpeTokenizer& tokenizer, const std::string& line, const std::string& where) {
  const std::size_t space = line.find(' ');
  if (space == line.npos || line.find(' ', space + 1) != line.npos) {
    throw InputError(where + "not two tokens with a space between them");
  }
  tokenizer.add_merge(line.substr(0, space), line.substr(space + 1), where);
}

void add_merge_lines(BpeTokenizer& tokenizer, const std::filesystem::path& path) {
  const std::string text = read_text_file(path, kMaxFileBytes);
  int number = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.starts_with("#version")) continue;
    add_merge_line(tokenizer, line, path.string() + ":" + std::to_string(number) + ": ");
  }
}

// What of tokenizer.json would make other ids of a text, and is not done here.
void check_pipeline(const json& model, const json& object, const std::string& where) {
  const auto fail = [&](const std::string& what) { throw InputError(where + what); };
  const auto absent = [](const json& in, const char* key) {
    const auto found = in.find(key);
    return found == in.end() || found->is_null() || *found == "" || *found == false;
  };
  if (model.value("type", json("BPE")) != "BPE") fail("model: only BPE is supported");
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                          "byte_fallback", "ignore_merges"}) {
    if (!absent(model, key)) fail("model." + std::string(key) + " is not supported");
  }
  if (!absent(object, "normalizer")) fail("a tokenizer that normalizes text is not supported");
  const auto words = object.find("pre_tokenizer");
  if (words == object.end() || !words->is_object() || words->value("type", json()) != "ByteLevel" ||
      words->value("use_regex", json(true)) != true) {
    fail("pre_tokenizer: only that of GPT-2 (\"ByteLevel\") is supported");
  }
}

// The tokens that the post-processor puts around a text.
struct Template {
  std::optional<std::string> first, last;
};

// A step of the post-processor. Those of GPT-2 ("ByteLevel") only say which bytes a token stands for.
void add_step(const json& step, Template& around, const std::string& where) {
  const json type = step.is_object() ? step.value("type", json()) : json();
  if (type == "Sequence") {
    for (const json& inner : step.value("processors", json::array()))
      add_step(inner, around, where);
    return;
  }
  if (type == "ByteLevel") return;
  const json parts = step.is_object() ? step.value("single", json()) : json();
  const auto fail = [&] {
    throw InputError(where +
                     "post_processor: only a template of at most one special token before " +
                     "and one behind the text is supported");
  };
  if (type != "TemplateProcessing" || !parts.is_array()) fail();
  bool text_seen = false;
  for (const json& part : parts) {
    if (part.is_object() && part.contains("Sequence") && !text_seen) {
      text_seen = true;
      continue;
    }
    const json special = part.is_object() ? part.value("SpecialToken", json()) : json();
    const json id = special.is_object() ? special.value("id", json()) : json();
    std::optional<std::string>& place = text_seen ? around.last : around.first;
    if (!id.is_string() || place) fail();
    place = id.get<std::string>();
  }
}

Template read_template(const json& object, const std::string& where) {
  Template around;
  const json step = object.value("post_processor", json());
  if (!step.is_null()) add_step(step, around, where);
  return around;
}

// A tokenizer.json, as far as it says what is done to a text.
void check_pipeline_of_file(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file)) return;
  const json object = read_json_file(file, kMaxFileBytes);
  const std::string where = file.string() + ": ";
  if (!object.is_object() || !object.contains("model") || !object["model"].is_object()) {
    throw InputError(where + "no object \"model\"");
  }
  check_pipeline(object["model"], object, where);
}

void finish(BpeTokenizer& tokenizer, const TokenizerConfig& config, const Template& around) {
  const std::string where = config.file.string() + ": ";
  // GPT-2 adds none unless told to.
  if (config.add_bos.value_or(around.first.has_value())) {
    const std::optional<std::string> name = config.bos ? config.bos : around.first;
    if (!name) throw InputError(where + "add_bos_token is true, but there is no bos_token");
    tokenizer.set_bos(*name, where);
  }
  if (config.add_eos.value_or(around.last.has_value())) {
    const std::optional<std::string> name = config.eos ? config.eos : around.last;
    if (!name) throw InputError(where + "add_eos_token is true, but there is no eos_token");
    tokenizer.set_eos(*name, where);
  }
}

}  // namespace

std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& vocabulary,
                                         const std::filesystem::path& merges,
                                         const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<BpeTokenizer>(read_json_file(vocabulary, kMaxFileBytes),
                                                  vocabulary.string() + ": ");
  check_pipeline_of_file(vocabulary.parent_path() / "tokenizer.json");
  add_merge_lines(*tokenizer, merges);
  const std::filesystem::path added = vocabulary.parent_path() / "added_tokens.json";
  if (std::filesystem::exists(added)) {
    const json tokens = read_json_file(added, kMaxFileBytes);
    const std::string where = added.string() + ": ";
    if (!tokens.is_object()) throw InputError(where + "not an object of tokens and ids");
    for (const auto& [token, id] : tokens.items()) tokenizer->add_token(token, id, where);
  }
  tokenizer->set_prefix_space(config.add_prefix_space.value_or(false));
  finish(*tokenizer, config, {});
  return tokenizer;
}

std::unique_ptr<Tokenizer> load_byte_bpe(const std::filesystem::path& file,
                                         const TokenizerConfig& config) {
  const json object = read_json_file(file, kMaxFileBytes);
  const std::string where = file.string() + ": ";
  if (!object.is_object() || !object.contains("model") || !object["model"].is_object()) {
    throw InputError(where + "no object \"model\"");
  }
  const json& model = object["model"];
  check_pipeline(model, object, where);
  auto tokenizer =
      std::make_unique<BpeTokenizer>(model.value("vocab", json()), where + "model.vocab: ");
  const json merges = model.value("merges", json());
  if (!merges.is_array()) throw InputError(where + "model.merges: not a list");
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::string at = where + "model.merges[" + std::to_string(i) + "]: ";
    const json& merge = merges[i];  // "LEFT RIGHT", or the two in a list
    if (merge.is_string()) {
      add_merge_line(*tokenizer, merge.get<std::string>(), at);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      tokenizer->add_merge(merge[0].get<std::string>(), merge[1].get<std::string>(), at);
    } else {
      throw InputError(at + "not two tokens");
    }
  }
  const json added = object.value("added_tokens", json::array());
  if (!added.is_array()) throw InputError(where + "added_tokens: not a list");
  for (const json& token : added) {
    if (!token.is_object() || !token.value("content", json()).is_string()) {
      throw InputError(where + "added_tokens: a token without \"content\"");
    }
    tokenizer->add_token(token["content"].get<std::string>(), token.value("id", json()),
                         where + "added_tokens: ");
  }
  const bool prefix_space = object["pre_tokenizer"].value("add_prefix_space", json(true)) == true;
  tokenizer->set_prefix_space(config.add_prefix_space.value_or(prefix_space));
  finish(*tokenizer, config, read_template(object, where));
  return tokenizer;
}

}  // namespace roundhouse
