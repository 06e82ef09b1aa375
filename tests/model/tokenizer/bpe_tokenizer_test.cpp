// Byte-level BPE: hand-worked words and merges, what follows from the configs, and hostile files.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <tuple>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <utf8proc.h>

#include "base/random.h"
#include "model/tokenizer/byte_characters.h"
#include "model/tokenizer/byte_pair_merges.h"
#include "model/tokenizer/character_kinds.h"
#include "model/tokenizer/normalizer.h"
#include "model/tokenizer/regex.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"
#include "model/tokenizer/word_pattern.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::vector<std::string> in(std::string_view text, const std::vector<Words::Range>& words) {
  std::vector<std::string> parts;
  for (const auto& word : words) parts.emplace_back(text.substr(word.begin, word.end - word.begin));
  return parts;
}

std::vector<std::string> words_of(const WordPattern& pattern, std::string_view text) {
  std::vector<Words::Range> words;
  pattern.append_words(text, 0, words);
  return in(text, words);
}

std::vector<std::string> matches_of(const Regex& regex, std::string_view text) {
  std::vector<Words::Range> words;
  Regex::Matches matches(regex, text);
  while (const auto match = matches.next()) words.push_back({match->begin, match->end});
  return in(text, words);
}

TEST(WordPatternTest, OfGpt2) {
  const auto words = [](std::string_view text) { return words_of(WordPattern::gpt2(), text); };
  EXPECT_THAT(words(""), IsEmpty());
  EXPECT_THAT(words("Hello world"), ElementsAre("Hello", " world"));
  EXPECT_THAT(words("x   y\n\n z"), ElementsAre("x", "  ", " y", "\n\n", " z"));
  EXPECT_THAT(words("end  "), ElementsAre("end", "  "));
  EXPECT_THAT(words("it's we'll 'Ssh"), ElementsAre("it", "'s", " we", "'ll", " '", "Ssh"));
  EXPECT_THAT(words("a1b22 $5!? 3"), ElementsAre("a", "1", "b", "22", " $", "5", "!?", " 3"));
  EXPECT_THAT(words("\t \tx"), ElementsAre("\t ", "\t", "x")) << "only a space leads a word";
  EXPECT_THAT(words("né\u00a0\u00a0Ω ٣"), ElementsAre("né", "\u00a0", "\u00a0", "Ω", " ٣"));
}

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kNemo =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// One of each kind that a pattern tells apart, those of all bytes in UTF-8 and odd ones of a kind.
const std::vector<std::string> kOneOfEach{"'",  "s", "T", "1",  " ",      "\n",
                                          "\t", "!", "/", "中", "\u0301", "\u2028"};
const std::vector<std::string> kMore{
    "r",      "E",      "v",          "e",          "M",          "l",          "L",
    "d",      "\u017f", "K",          "\u2019",     "\r",         "\r\n",       "  ",
    "    ",   "\u0085", "\u00a0",     "\u3000",     "23",         "٣",          "½",
    "Ⅷ",      "\u20dd", "\u0903",     "//",         "_",          "\U0001f600", "\U0001f3fd",
    "\u200d", "\ue000", "\U00100000", "\ufffd",     "É",          "ß",          "ǅ",
    "ʰ",      "ª",      "\U0001d7d8", "\U00020000", "\U000e0100", "word",       "HTTP",
    "\u0130", "it's",   "it'LL",      "x\n/\n",     "\u0000"};

// Of a code point that both libraries know; the versions of Unicode that they know may be different.
class WordPatternsTest : public testing::Test {
 protected:
  WordPatternsTest() {
    const Regex known(R"([^\p{Cn}\p{Cs}])", "");
    std::string all;
    for (char32_t c = 0; c < 0x110000; ++c) {
      if ((c < 0xd800 || c >= 0xe000) &&
          utf8proc_category(static_cast<int>(c)) != UTF8PROC_CATEGORY_CN)
        append_utf8(all, c);
    }
    Regex::Matches matches(known, all);
    while (const auto match = matches.next())
      characters_ += all.substr(match->begin, match->end - match->begin);
  }
  std::string random_character(Random& random) const {
    std::size_t i = random.below(characters_.size());
    while ((static_cast<unsigned char>(characters_[i]) & 0xc0) == 0x80) --i;
    return characters_.substr(i, code_point_at(characters_, i).bytes);
  }
  std::string characters_;
};

TEST_F(WordPatternsTest, CharactersAreOfTheKindsOfThePatterns) {
  const CharacterKinds& kinds = CharacterKinds::table();
  for (const auto& [set, kind] :
       std::vector<std::pair<std::string, CharacterKind>>{{R"([\p{Lu}\p{Lt}])", kUpperLetter},
                                                          {R"(\p{Ll})", kLowerLetter},
                                                          {R"([\p{Lm}\p{Lo}])", kCaselessLetter},
                                                          {R"(\p{M})", kMark},
                                                          {R"(\p{N})", kNumber},
                                                          {R"([\r\n])", kNewline},
                                                          {R"((?![\r\n])\s)", kOtherWhiteSpace}}) {
    std::string expected, found;
    for (const std::string& match : matches_of(Regex(set, ""), characters_)) expected += match;
    for (std::size_t i = 0; i < characters_.size();) {
      const CodePoint c = code_point_at(characters_, i);
      if (kinds[c.value] == kind) append_utf8(found, c.value);
      i += c.bytes;
    }
    EXPECT_EQ(found.size(), expected.size()) << set;
    EXPECT_TRUE(found == expected) << set;
  }
}

TEST_F(WordPatternsTest, WordsAreTheMatchesOfTheRegularExpression) {
  for (const std::string_view source : {kGpt2, kLlama3, kQwen, kNemo}) {
    const WordPattern* pattern = WordPattern::find(source);
    ASSERT_NE(pattern, nullptr) << source;
    const Regex regex(std::string(source), "");
    const auto check = [&](const std::string& text) {
      const auto words = words_of(*pattern, text);
      ASSERT_EQ(words, matches_of(regex, text)) << source;
      // A place where the text may be cut is the end of a word, and the parts have the words of the whole.
      for (std::size_t i = 0, k = 0; k < words.size(); ++k) {
        for (const std::size_t end = i + words[k].size(); i < end;) {
          const CodePoint left = code_point_at(text, i);
          i += left.bytes;
          if (i == text.size() ||
              pattern->cut(left.value, code_point_at(text, i).value) != Cut::kBetween)
            continue;
          auto parts = words_of(*pattern, std::string_view(text).substr(0, i));
          const auto second = words_of(*pattern, std::string_view(text).substr(i));
          parts.insert(parts.end(), second.begin(), second.end());
          ASSERT_EQ(parts, words) << source << " cut at byte " << i;
        }
      }
    };
    const std::size_t n = kOneOfEach.size();
    for (std::size_t i = 0; i < n * n * n * n; ++i)
      check(kOneOfEach[i / n / n / n] + kOneOfEach[i / n / n % n] + kOneOfEach[i / n % n] +
            kOneOfEach[i % n]);
    Random random(5);
    for (int i = 0; i < 10000; ++i) {
      std::string text;
      for (std::uint64_t length = random.below(24); length > 0; --length) {
        const std::uint64_t from = random.below(8);
        text += from == 0  ? random_character(random)
                : from < 4 ? kMore[random.below(kMore.size())]
                           : kOneOfEach[random.below(n)];
      }
      check(text);
    }
  }
}

TEST(WordPatternTest, AnotherPatternIsNotKnown) {
  EXPECT_EQ(WordPattern::find(""), nullptr);
  EXPECT_EQ(WordPattern::find(std::string(kQwen) + " "), nullptr);
  EXPECT_EQ(WordPattern::find(kNemo.substr(1)), nullptr);
}

// All bytes; then "ab", "abc" and "bc", so that ranks decide.
class BpeFilesTest : public testing::Test {
 protected:
  BpeFilesTest() {
    for (int byte = 0; byte < 256; ++byte) {
      vocabulary_[characters_of_bytes()[byte]] = byte;
    }
    vocabulary_["ab"] = 256;
    vocabulary_["abc"] = 257;
    vocabulary_["bc"] = 258;
    vocabulary_["</s>"] = 300;
    write();
  }
  void write() {
    write_file(directory_ / "vocab.json", vocabulary_.dump());
    write_file(directory_ / "merges.txt", merges_);
  }
  std::unique_ptr<Tokenizer> load() const { return load_tokenizer(directory_.path()); }
  std::string error() const {
    return input_error_of([&] { (void)load(); });
  }
  std::string error_with_merges(const std::string& merges) {
    merges_ = merges;
    write();
    return error();
  }

  TemporaryFolder directory_;
  json vocabulary_ = json::object();
  std::string merges_ = "#version: 0.2\na b\nab c\nb c\n";
};

TEST_F(BpeFilesTest, LowestRankMergesFirst) {
  EXPECT_THAT(load()->encode("abc"), ElementsAre(257));
  EXPECT_THAT(load()->encode("bcab"), ElementsAre(258, 256));
  EXPECT_THAT(load()->encode("ababcc"), ElementsAre(256, 257, 'c'));
  merges_ = "b c\na b\nab c\n";
  write();
  EXPECT_THAT(load()->encode("abc"), ElementsAre('a', 258));
  EXPECT_EQ(load()->vocabulary(), 301) << "the highest id and one";
}

TEST_F(BpeFilesTest, BytesThatAreNoTextOfTheirOwn) {
  EXPECT_THAT(load()->encode("é \n"), ElementsAre(0xc3, 0xa9, ' ', '\n'));
  EXPECT_THAT(input_error_of([&] { (void)load()->encode("\xc3"); }), HasSubstr("UTF-8"));
}

TEST_F(BpeFilesTest, BeginOfTextFollowsTheConfigs) {
  EXPECT_EQ(load()->bos(), -1) << "GPT-2 adds none";
  write_file(directory_ / "tokenizer_config.json",
             R"({"add_bos_token": true, "bos_token": {"content": "</s>"}})");
  EXPECT_THAT(load()->encode_document("ab"), ElementsAre(300, 256));
  write_file(directory_ / "tokenizer_config.json", R"({"add_bos_token": true})");
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: add_bos_token is true"));
  write_file(directory_ / "tokenizer_config.json",
             R"({"add_bos_token": true, "bos_token": "<x>"})");
  EXPECT_THAT(error(), HasSubstr("tokenizer_config.json: bos_token: \"<x>\""));
  std::filesystem::remove(directory_ / "tokenizer_config.json");

  json config = small_opt_config();
  config["vocab_size"] = 301;
  write_file(directory_ / "config.json", config.dump());
  EXPECT_EQ(load()->bos(), 300) << "of an OPT, whatever its tokenizer does not say";
  config["vocab_size"] = 300;
  write_file(directory_ / "config.json", config.dump());
  EXPECT_THAT(error(), AllOf(HasSubstr("vocab.json"), HasSubstr("301 pieces")));
}

TEST_F(BpeFilesTest, SpaceBeforeTheTextIsAddedOnRequest) {
  write_file(directory_ / "tokenizer_config.json", R"({"add_prefix_space": true})");
  EXPECT_THAT(load()->encode("ab"), ElementsAre(' ', 256));
  EXPECT_THAT(load()->encode(" ab"), ElementsAre(' ', 256));
  EXPECT_THAT(load()->encode(""), IsEmpty());
}

TEST_F(BpeFilesTest, FilesToCarryAlong) {
  EXPECT_THAT(tokenizer_files(directory_.path()),
              ElementsAre(directory_ / "vocab.json", directory_ / "merges.txt"));
}

TEST_F(BpeFilesTest, HalfOfAPairOfFilesIsNamed) {
  std::filesystem::remove(directory_ / "merges.txt");
  EXPECT_THAT(error(), HasSubstr("merges.txt: missing"));
  write();
  std::filesystem::remove(directory_ / "vocab.json");
  EXPECT_THAT(error(), HasSubstr("vocab.json: missing"));
}

TEST_F(BpeFilesTest, WrongVocabularyIsAnInputErrorThatNamesTheToken) {
  const auto error_with = [&](const char* token, const json& id) {
    vocabulary_["x y"] = 299;
    vocabulary_[token] = id;
    write();
    vocabulary_.erase(token);
    return error();
  };
  EXPECT_THAT(error_with("x y", 300), AllOf(HasSubstr("vocab.json"), HasSubstr("same id 300")));
  EXPECT_THAT(error_with("x y", -1), HasSubstr("token \"x y\": its id is not an integer"));
  EXPECT_THAT(error_with("x y", std::uint64_t{1} << 40), HasSubstr("its id is not an integer"));
  EXPECT_THAT(error_with("x y", 1.5), HasSubstr("its id is not an integer"));
  EXPECT_THAT(error_with("x y", "1"), HasSubstr("its id is not an integer"));
  write_file(directory_ / "vocab.json", "[]");
  EXPECT_THAT(error(), HasSubstr("vocab.json: not an object"));
  write_file(directory_ / "vocab.json", "{\"a\": 1, \"a\": 2}");
  EXPECT_THAT(error(), HasSubstr("stands twice"));
  write_file(directory_ / "vocab.json", "{\"\xff\": 1}");
  EXPECT_THAT(error(), HasSubstr("not JSON"));
}

// Short words and long ones are merged in two ways; what both have to do, by its definition.
TEST(BytePairMergesTest, OfAllNeighboursTheLowestRankThenTheLeftmost) {
  Random random(11);
  const auto below = [&](std::uint64_t n) { return static_cast<std::int32_t>(random.below(n)); };
  for (int vocabulary = 0; vocabulary < 30; ++vocabulary) {
    BytePairMerges merges;
    std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t>> ranked;
    const int count = 3 + vocabulary * 8;
    for (int i = 0; i < count; ++i) {
      const auto left = below(4 + i / 2), right = below(4 + i / 2);
      const std::int32_t merged = 4 + i;
      const bool is_new = std::ranges::none_of(ranked, [&](const auto& each) {
        return std::get<0>(each) == left && std::get<1>(each) == right;
      });
      EXPECT_EQ(merges.add(left, right, merged), is_new);
      if (is_new) ranked.emplace_back(left, right, merged);
    }
    BytePairMerges::Work work;
    std::array<std::int32_t, 256> symbols{};
    symbols.fill(-1);
    for (std::size_t byte = 0; byte < 4; ++byte) symbols['a' + byte] = static_cast<int>(3 - byte);
    merges.set_bytes(symbols);
    for (int length = 0; length < 140; length += 1 + length / 40) {
      std::vector<std::int32_t> ids;
      for (int i = 0; i < length; ++i) ids.push_back(below(4));
      std::string bytes;
      for (const std::int32_t id : ids) bytes += static_cast<char>('a' + 3 - id);
      merges.merge_bytes(bytes, work);
      const std::vector<std::int32_t> of_bytes = work.ids;
      work.ids = ids;
      merges.merge(work);
      for (bool merged = true; merged;) {
        merged = false;
        for (const auto& [left, right, both] : ranked) {
          for (std::size_t i = 0; !merged && i + 1 < ids.size(); ++i) {
            if (ids[i] != left || ids[i + 1] != right) continue;
            ids[i] = both;
            ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            merged = true;
          }
          if (merged) break;
        }
      }
      ASSERT_EQ(of_bytes, ids) << length << " bytes, " << count << " merges";
      ASSERT_EQ(work.ids, ids) << length << " symbols, " << count << " merges";
    }
  }
}

// SmolLM2's vocabulary lacks 21 bytes.
TEST_F(BpeFilesTest, BytesWithoutATokenAreDroppedAndNamed) {
  vocabulary_.erase("q");
  vocabulary_.erase(characters_of_bytes()[4]);
  write();
  EXPECT_THAT(load()->encode("aqb\x04"), ElementsAre(256)) << "as if they were not there";
  EXPECT_THAT(load()->warnings(),
              ElementsAre(AllOf(HasSubstr("vocab.json"), HasSubstr("2 of the 256 bytes"),
                                HasSubstr(": 04 71"))));
  write_file(directory_ / "vocab.json", R"({"hello": 0})");
  write_file(directory_ / "merges.txt", "");
  EXPECT_THAT(error(), HasSubstr("not a byte-level BPE"));
}

TEST_F(BpeFilesTest, WrongMergesAreAnInputErrorThatNamesTheLine) {
  EXPECT_THAT(error_with_merges("#version: 0.2\na b\nab\n"),
              HasSubstr("merges.txt:3: not two tokens"));
  EXPECT_THAT(error_with_merges("a b c\n"), HasSubstr("merges.txt:1: not two tokens"));
  EXPECT_THAT(error_with_merges("a b\n\nb c\n"), HasSubstr("merges.txt:2: not two tokens"));
  EXPECT_THAT(error_with_merges("a zz\n"), HasSubstr("merges.txt:1: \"azz\" is not in"));
  EXPECT_THAT(error_with_merges("a  b\n"), HasSubstr("merges.txt:1"));
  EXPECT_THAT(error_with_merges("a b\na b\n"), HasSubstr("merges.txt:2: stands twice"));
  EXPECT_THAT(error_with_merges("a b\r\n"), HasSubstr("merges.txt:1"));
  EXPECT_EQ(error_with_merges(""), "(no InputError)") << "bytes alone are a vocabulary";
}

class TokenizerJsonTest : public testing::Test {
 protected:
  TokenizerJsonTest() {
    std::ifstream file(source_folder() / "tests/golden/tokenizer/bpe/tokenizer.json");
    good_ = json::parse(file);
  }
  std::string error_with(const json& patch) {
    json changed = good_;
    changed.merge_patch(patch);
    write_file(directory_ / "tokenizer.json", changed.dump());
    return input_error_of([&] { (void)load_tokenizer(directory_.path()); });
  }
  std::unique_ptr<Tokenizer> load(const json& object) {
    write_file(directory_ / "tokenizer.json", object.dump());
    return load_tokenizer(directory_.path());
  }
  TemporaryFolder directory_;
  json good_;
};

TEST_F(TokenizerJsonTest, BeginOfTextIsThatOfTheTemplateUnlessTheConfigSaysOtherwise) {
  EXPECT_EQ(load(good_)->bos(), 2);
  json bare = good_;
  bare["post_processor"] = nullptr;
  EXPECT_EQ(load(bare)->bos(), -1);
  write_file(directory_ / "tokenizer_config.json", R"({"add_bos_token": false})");
  EXPECT_EQ(load(good_)->bos(), -1);
}

TEST_F(TokenizerJsonTest, MergesMayBeStringsOrPairs) {
  json other = good_;
  for (json& merge : other["model"]["merges"]) {
    if (merge.is_array()) {
      merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
    } else {
      const auto text = merge.get<std::string>();
      merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
    }
  }
  EXPECT_EQ(load(other)->encode("The red ball"), load(good_)->encode("The red ball"));
}

TEST_F(TokenizerJsonTest, WhatIsNotDoneIsRefusedByName) {
  EXPECT_EQ(error_with(json::object()), "(no InputError)");
  const auto with_type = [&](const char* key, const char* type) {
    return error_with({{key, {{"type", type}}}});
  };
  EXPECT_THAT(with_type("normalizer", "Lowercase"), HasSubstr("normalizer: \"Lowercase\""));
  EXPECT_THAT(with_type("normalizer", "Precompiled"), HasSubstr("\"Precompiled\""));
  EXPECT_THAT(with_type("pre_tokenizer", "BertPreTokenizer"),
              HasSubstr("pre_tokenizer: \"BertPreTokenizer\""));
  EXPECT_THAT(with_type("pre_tokenizer", "UnicodeScripts"), HasSubstr("\"UnicodeScripts\""));
  EXPECT_THAT(with_type("pre_tokenizer", "Split"), HasSubstr("Split: pattern"));
  EXPECT_THAT(with_type("pre_tokenizer", "Metaspace"), HasSubstr("Metaspace: replacement"));
  EXPECT_THAT(error_with({{"pre_tokenizer", {{"use_regex", 3}}}}), HasSubstr("use_regex"));
  EXPECT_THAT(error_with({{"post_processor", {{"type", "RobertaProcessing"}}}}),
              HasSubstr("post_processor"));
  EXPECT_THAT(error_with({{"model", {{"type", "Unigram"}}}}),
              HasSubstr("model: \"Unigram\" is not supported, only BPE"));
  EXPECT_THAT(error_with({{"model", {{"type", "WordPiece"}}}}), HasSubstr("\"WordPiece\""));
  EXPECT_THAT(error_with({{"model", {{"dropout", 0.1}}}}), HasSubstr("model.dropout"));
  EXPECT_THAT(error_with({{"model", {{"end_of_word_suffix", "</w>"}}}}),
              HasSubstr("model.end_of_word_suffix"));
  EXPECT_THAT(error_with({{"model", {{"byte_fallback", 1}}}}), HasSubstr("byte_fallback"));
  EXPECT_THAT(error_with({{"model", {{"unk_token", "<none>"}}}}), HasSubstr("\"<none>\""));
  EXPECT_THAT(error_with({{"model", nullptr}}), HasSubstr("no object \"model\""));
  EXPECT_THAT(error_with({{"model", {{"vocab", nullptr}}}}), HasSubstr("model.vocab"));
  EXPECT_THAT(error_with({{"model", {{"merges", 1}}}}), HasSubstr("model.merges: not a list"));
  EXPECT_THAT(error_with({{"model", {{"merges", {1}}}}}), HasSubstr("model.merges[0]"));
  EXPECT_THAT(error_with({{"added_tokens", {1}}}), HasSubstr("added_tokens"));
  EXPECT_THAT(error_with({{"added_tokens", {{{"content", "<x>"}, {"id", -3}}}}}),
              AllOf(HasSubstr("added_tokens"), HasSubstr("\"<x>\"")));
  EXPECT_THAT(error_with({{"added_tokens", {{{"content", "</s>"}, {"id", 9}}}}}),
              HasSubstr("has two ids"));
}

json split_at(const std::string& pattern) {
  return {{"type", "Sequence"},
          {"pretokenizers",
           {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
}

TEST_F(TokenizerJsonTest, APatternThatIsReadDifferentlyOrTakesForeverIsRefused) {
  const auto error = [&](const std::string& pattern) {
    return error_with({{"pre_tokenizer", nullptr}}) == "(no InputError)"
               ? error_with({{"pre_tokenizer", split_at(pattern)}})
               : "(no)";
  };
  EXPECT_THAT(error("(a"), HasSubstr("regular expression \"(a\""));
  EXPECT_THAT(error("[a&&b]"), HasSubstr("&& is not supported"));
  EXPECT_THAT(error("[a[b]]"), HasSubstr("a class in a class"));
  EXPECT_THAT(error("a\\1"), HasSubstr("\\1 is not supported"));
  EXPECT_THAT(error("(?<name>a)"), HasSubstr("is not supported"));
  EXPECT_THAT(error(std::string(20'000, 'a')), HasSubstr("too long"));

  json object = good_;
  object["pre_tokenizer"] = split_at("(a|aa)+$");
  const auto tokenizer = load(object);
  EXPECT_NO_THROW((void)tokenizer->encode("aaa"));
  EXPECT_THAT(input_error_of([&] { (void)tokenizer->encode(std::string(2000, 'a') + "b"); }),
              AllOf(HasSubstr("(a|aa)+$"), HasSubstr("2001 bytes"), HasSubstr("limit")));
}

TEST_F(TokenizerJsonTest, ALongRunOfWhiteSpaceIsNotTooMuch) {
  json object = good_;
  object["pre_tokenizer"] = split_at("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|\\S+");
  const auto tokenizer = load(object);
  EXPECT_NO_THROW((void)tokenizer->encode(std::string(3'000'000, ' ') + "x"));
}

TEST_F(TokenizerJsonTest, EndOfTextIsThatOfTheTemplate) {
  json object = good_;
  object["post_processor"] = {{"type", "Sequence"},
                              {"processors",
                               {{{"type", "ByteLevel"}},
                                {{"type", "TemplateProcessing"},
                                 {"single",
                                  {{{"SpecialToken", {{"id", "<s>"}}}},
                                   {{"Sequence", {{"id", "A"}}}},
                                   {{"SpecialToken", {{"id", "</s>"}}}}}}}}}};
  EXPECT_EQ(load(object)->encode_document(""), (std::vector<std::int32_t>{0, 2}));
}

// What transformers reads when all three are there.
TEST_F(TokenizerJsonTest, IsHeardBesideTheOtherTwoFiles) {
  for (const char* file : {"vocab.json", "merges.txt"}) {
    std::filesystem::copy_file(
        std::filesystem::path(ROUNDHOUSE_SOURCE_DIR) / "tests/golden/tokenizer/bpe" / file,
        directory_ / file);
  }
  EXPECT_EQ(error_with(json::object()), "(no InputError)");
  EXPECT_THAT(error_with({{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}),
              HasSubstr("tokenizer.json: pre_tokenizer"));
  EXPECT_THAT(load(good_)->source(), HasSubstr("tokenizer.json (BPE"));
  write_file(directory_ / "vocab.json", R"({"the": 1})");
  EXPECT_THAT(error_with(json::object()),
              AllOf(HasSubstr("tokenizer.json and "), HasSubstr("vocab.json have other"),
                    HasSubstr("\"the\"")));
}

TEST_F(TokenizerJsonTest, DamagedFileIsAnInputErrorOrWorks) {
  const std::string valid = good_.dump();
  Random random(1);
  const auto try_bytes = [&](const std::string& bytes) {
    write_file(directory_ / "tokenizer.json", bytes);
    try {
      (void)load_tokenizer(directory_.path())->encode("The red ball is in the box.\n\t🙂");
      return true;
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("tokenizer"));
      return false;
    }
  };
  EXPECT_TRUE(try_bytes(valid));
  for (std::size_t length = 0; length < valid.size(); length += 97) {
    EXPECT_FALSE(try_bytes(valid.substr(0, length))) << length << " bytes";
  }
  for (int i = 0; i < 500; ++i) {
    std::string bytes = valid;
    bytes[random.below(bytes.size())] = static_cast<char>(random.below(256));
    (void)try_bytes(bytes);
  }
}

// Texts of what normal forms change, of what changes with what is before it, and of letters between: utf8proc, of the whole text.
TEST(NormalizerTest, OnlyWhatChangesIsLookedAtAndTheRestIsAsUnicodeSays) {
  const auto newer =
      [](char32_t c) {  // than the tables of Hugging Face's library, which leaves them alone
        return c == 0x7fd || (c >= 0x898 && c <= 0x89f) || (c >= 0x8ca && c <= 0x8d3) ||
               c == 0x9fe || c == 0xc3c || c == 0xd3b || c == 0xd3c || c == 0xeba || c == 0xece ||
               c == 0x1715 || (c >= 0x1abf && c <= 0x1ace) || (c >= 0x1df6 && c <= 0x1dfa);
      };
  std::vector<char32_t> changing,
      plain = {U'a', U'e', U' ', U'\u0915', U'\u05d0', U'\u4e00', U'\uac00'};
  for (char32_t c = 0x80; c < 0x2100; ++c) {
    const utf8proc_property_t* const property =
        utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    const bool mark = property->combining_class > 0 || property->category == UTF8PROC_CATEGORY_MC;
    const bool jamo = c >= 0x1100 && c < 0x1200;
    if (!newer(c) && (mark || jamo || property->decomp_seqindex != UINT16_MAX))
      changing.push_back(c);
  }
  for (const char32_t c : {0x2126, 0x212b, 0x304b, 0x3099, 0xac01, 0xd7a3, 0xf900, 0xfb1f, 0xfb2a,
                           0xffc2, 0x1109a, 0x110ba, 0x1d15e, 0x2f800})
    changing.push_back(c);
  for (const auto& [name, options] :
       {std::pair("NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE),
        {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
        {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
        {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}}) {
    const Normalizer normalizer(json{{"type", name}}, "");
    Random random(5);
    const auto one_of = [&](const std::vector<char32_t>& of) {
      return of[random.below(of.size())];
    };
    for (int n = 0; n < 20000; ++n) {
      std::string text, own;
      for (std::uint64_t length = 1 + random.below(9); length > 0; --length)
        append_utf8(text, one_of(random.below(3) == 0 ? plain : changing));
      utf8proc_uint8_t* whole = nullptr;
      const auto bytes = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                      static_cast<utf8proc_ssize_t>(text.size()), &whole,
                                      static_cast<utf8proc_option_t>(options));
      ASSERT_GE(bytes, 0);
      const std::string expected(reinterpret_cast<const char*>(whole),
                                 static_cast<std::size_t>(bytes));
      std::free(whole);
      ASSERT_EQ(normalizer.apply(text, PieceStart::kText, own), expected) << name << " of " << text;
    }
  }
}

}  // namespace
}  // namespace roundhouse
