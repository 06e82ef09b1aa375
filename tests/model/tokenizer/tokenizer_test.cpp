#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sentencepiece_processor.h>

#include "base/random.h"
#include "model/tokenizer/utf8.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string read_bytes(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string load_error(const std::filesystem::path& directory) {
  return input_error_of([&] { (void)load_tokenizer(directory); });
}

std::string hash_of(const std::vector<std::int32_t>& ids) {
  std::string bytes;
  for (const std::int32_t id : ids) {
    for (int i = 0; i < 4; ++i)
      bytes += static_cast<char>(static_cast<std::uint32_t>(id) >> (8 * i) & 0xff);
  }
  std::array<char, 17> text{};
  std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(fnv1a(bytes)));
  return text.data();
}

const std::filesystem::path kGolden = source_folder() / "tests/golden/tokenizer";

// The ids of the texts in a file, against Hugging Face's; see make_tokenizer.py. Returns how many.
int compare(const Tokenizer& tokenizer, const std::filesystem::path& texts,
            const std::filesystem::path& golden) {
  const json cases = json::parse(read_bytes(texts));
  std::ifstream lines(golden);
  int count = 0, wrong = 0;
  std::string expected;
  for (const json& text_and_repeat : cases) {
    std::string text;
    for (int i = 0; i < text_and_repeat.at(1).get<int>(); ++i)
      text += text_and_repeat.at(0).get<std::string>();
    if (!std::getline(lines, expected)) {
      ADD_FAILURE() << golden << " has fewer lines than there are texts";
      return count;
    }
    ++count;
    const std::vector<std::int32_t> ids = tokenizer.encode(text);
    if (const std::string got = std::to_string(ids.size()) + " " + hash_of(ids); got != expected) {
      ADD_FAILURE() << golden << ":" << count << ": " << text_and_repeat.dump() << " gives "
                    << (ids.size() < 100 ? json(ids).dump() : got);
      if (++wrong == 10) return count;
    }
  }
  EXPECT_FALSE(std::getline(lines, expected)) << golden << " has more lines than there are texts";
  return count;
}

TEST(TokenizerTest, SentencePieceAgreesWithHuggingFace) {
  EXPECT_GE(
      compare(*load_tokenizer(tiny_world()), kGolden / "texts.json", kGolden / "tiny-world.txt"),
      1000);
}

// What follows a special token gets no space in front; and with the other key the text gets none either.
TEST(TokenizerTest, SentencePieceAgreesWithHuggingFaceOnTheSpaceInFront) {
  for (const auto& [settings, golden] :
       {std::pair(R"({"legacy": false})", "tiny-world-inside.txt"),
        {R"({"legacy": false, "add_prefix_space": false})", "tiny-world-no-prefix.txt"}}) {
    const TemporaryFolder directory;
    std::filesystem::copy_file(tiny_world() / "tokenizer.model", directory / "tokenizer.model");
    write_file(directory / "tokenizer_config.json", settings);
    EXPECT_GE(compare(*load_tokenizer(directory.path()), kGolden / "texts.json", kGolden / golden),
              1000);
  }
}

// The files that each kind of tokenizer is in, alone.
TEST(TokenizerTest, BytePairsAgreeWithHuggingFaceFromEitherKindOfFile) {
  for (const auto& [files, golden] :
       {std::pair(std::vector{"vocab.json", "merges.txt", "tokenizer_config.json"}, "golden.txt"),
        {std::vector{"tokenizer.json"}, "golden-json.txt"}}) {
    const TemporaryFolder directory;
    for (const char* file : files)
      std::filesystem::copy_file(kGolden / "bpe" / file, directory / file);
    EXPECT_GE(compare(*load_tokenizer(directory.path()), kGolden / "texts.json",
                      kGolden / "bpe" / golden),
              1000);
  }
}

// Tokenizers that are not part of the repository: folders made by make_tokenizer.py.
TEST(TokenizerTest, PublishedTokenizersAgreeWithHuggingFace) {
  const char* root = std::getenv("ROUNDHOUSE_TOKENIZERS");
  if (root == nullptr) GTEST_SKIP() << "ROUNDHOUSE_TOKENIZERS names no folder of make_tokenizer.py";
  int folders = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root)) {
    if (!entry.is_directory()) continue;
    const int count =
        compare(*load_tokenizer(entry.path()), std::filesystem::path(root) / "texts.json",
                entry.path() / "golden.txt");
    EXPECT_GE(count, 1000);
    std::printf("%s: %d texts\n", entry.path().filename().c_str(), count);
    ++folders;
  }
  EXPECT_GT(folders, 0);
}

TEST(TokenizerTest, BeginOfTextIsAddedOnRequest) {
  const auto tokenizer = load_tokenizer(tiny_world());
  EXPECT_EQ(tokenizer->vocabulary(), 1024);
  EXPECT_EQ(tokenizer->bos(), 1);
  EXPECT_THAT(tokenizer->encode(""), IsEmpty());
  EXPECT_THAT(tokenizer->encode_document(""), ElementsAre(1));
  std::vector<std::int32_t> ids = tokenizer->encode("The box");
  ids.insert(ids.begin(), 1);
  EXPECT_EQ(tokenizer->encode_document("The box"), ids);
}

// The library's own ids of a text as a whole.
std::vector<std::int32_t> whole(const std::filesystem::path& model, std::string_view text) {
  sentencepiece::SentencePieceProcessor processor;
  EXPECT_TRUE(processor.Load(model.string()).ok());
  std::vector<int> ids;
  EXPECT_TRUE(processor.Encode(text, &ids).ok());
  return ids;
}

std::vector<std::int32_t> in_pieces(const Tokenizer& tokenizer, std::string_view text,
                                    std::size_t bytes) {
  std::vector<std::int32_t> ids;
  WordCache cache;
  PieceCutter pieces(tokenizer, text, bytes);
  std::size_t end = 0;
  while (const auto piece = pieces.next()) {
    EXPECT_EQ(piece->text.data(), text.data() + end);
    end += piece->text.size();
    tokenizer.append(*piece, cache, ids);
  }
  EXPECT_EQ(end, text.size());
  return ids;
}

// Texts are cut into words and pieces; nobody must see it.
TEST(TokenizerTest, ATextInPiecesHasTheIdsOfTheWholeText) {
  const auto tokenizer = load_tokenizer(tiny_world());
  const std::string text = read_bytes(tiny_world() / "test.txt");
  const std::vector<std::int32_t> ids = whole(tiny_world() / "tokenizer.model", text);
  EXPECT_EQ(tokenizer->encode(text), ids);
  for (const std::size_t bytes : {1, 100, 4099}) EXPECT_EQ(in_pieces(*tokenizer, text, bytes), ids);
}

// Texts made of the vocabulary's own pieces, cut and joined at random, are where merges go furthest.
TEST(TokenizerTest, MadeUpTextsInPiecesHaveTheIdsOfTheWhole) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load((tiny_world() / "tokenizer.model").string()).ok());
  const auto tokenizer = load_tokenizer(tiny_world());
  Random random(3);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (std::uint64_t n = 1 + random.below(12); n > 0; --n) {
      const std::string& piece = processor.IdToPiece(static_cast<int>(
          3 + random.below(static_cast<std::uint64_t>(processor.GetPieceSize() - 3))));
      text += random.below(4) == 0 ? piece.substr(0, 1) : piece;
      if (random.below(3) == 0) text += random.below(2) == 0 ? " " : "\n";
    }
    std::string valid;  // pieces were cut within characters
    for (std::string_view rest = text; !rest.empty();) {
      const std::size_t good = utf8_prefix(rest);
      valid += rest.substr(0, good);
      rest.remove_prefix(std::min(rest.size(), good + 1));
    }
    std::vector<int> ids;
    ASSERT_TRUE(processor.Encode(valid, &ids).ok());
    EXPECT_EQ(in_pieces(*tokenizer, valid, 1), ids) << json(valid);
  }
}

TEST(TokenizerTest, BytePairsInPiecesHaveTheIdsOfTheWhole) {
  const auto tokenizer = load_tokenizer(kGolden / "bpe");
  const json cases = json::parse(read_bytes(kGolden / "texts.json"));
  for (const json& text_and_repeat : cases) {
    std::string text;
    for (int i = 0; i < text_and_repeat.at(1).get<int>(); ++i)
      text += text_and_repeat.at(0).get<std::string>();
    const std::vector<std::int32_t> ids = tokenizer->encode(text);
    for (const std::size_t bytes : {1, 7, 64})
      EXPECT_EQ(in_pieces(*tokenizer, text, bytes), ids) << text_and_repeat.dump();
  }
}

TEST(TokenizerTest, AStretchWithoutWordsHasALimit) {
  const auto tokenizer = load_tokenizer(kGolden / "bpe");
  EXPECT_THAT(
      input_error_of([&] { (void)tokenizer->encode(std::string((1 << 24) + 100'000, 'a') + 'b'); }),
      HasSubstr("no word ends"));
}

TEST(TokenizerTest, InvalidUtf8IsAnInputError) {
  const auto tokenizer = load_tokenizer(tiny_world());
  for (const std::string text :
       {"\xff", "a\x80", "\xc3", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "\xf0\x9f\x99", "\xf8\x88\x80\x80\x80"}) {
    EXPECT_THAT(input_error_of([&] { (void)tokenizer->encode(text); }), HasSubstr("UTF-8"))
        << json(text.size());
  }
  for (const std::string text :
       {"\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_NO_THROW((void)tokenizer->encode(text));
  }
}

class TokenizerDirectoryTest : public testing::Test {
 protected:
  TokenizerDirectoryTest() {
    std::filesystem::copy_file(tiny_world() / "tokenizer.model", directory_ / "tokenizer.model");
  }
  void configure(const std::string& text) {
    write_file(directory_ / "tokenizer_config.json", text);
  }
  TemporaryFolder directory_;
};

TEST_F(TokenizerDirectoryTest, BeginOfTextFollowsTheConfig) {
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), 1) << "the default";
  configure(R"({"add_bos_token": false})");
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), -1);
  EXPECT_THAT(load_tokenizer(directory_.path())->encode_document(""), IsEmpty());
  configure(R"({"bos_token": "</s>"})");
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), 2);
  configure(R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "add_bos_token": true})");
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), 1);
}

TEST_F(TokenizerDirectoryTest, EndOfTextIsAddedOnRequest) {
  EXPECT_EQ(load_tokenizer(directory_.path())->eos(), -1);
  configure(R"({"add_eos_token": true})");
  EXPECT_THAT(load_tokenizer(directory_.path())->encode_document(""), ElementsAre(1, 2));
  configure(R"({"add_eos_token": true, "eos_token": "<unk>"})");
  EXPECT_EQ(load_tokenizer(directory_.path())->eos(), 0);
}

TEST_F(TokenizerDirectoryTest, SpecialTokensAreThoseThatTheFilesDeclare) {
  const auto ids = [&](const std::string& settings, const std::string& text) {
    configure(settings);
    return load_tokenizer(directory_.path())->encode(text);
  };
  EXPECT_THAT(ids("{}", "<s></s>"), ElementsAre(1, 2)) << "LLaMA's, if no file says otherwise";
  EXPECT_GT(ids(R"({"split_special_tokens": true})", "</s>").size(), 1u);
  EXPECT_GT(ids(R"({"eos_token": null})", "</s>").size(), 1u) << "no file names it";
  const std::string decoder =
      R"({"added_tokens_decoder": {"7": {"content": "[X]", "lstrip": true, "rstrip": true},
                                   "8": {"content": "[X]]"}}})";
  EXPECT_THAT(ids(decoder, "[X] \n [X]] \t[X][X]]"), ElementsAre(7, 8, 7, 8))
      << "the longest first, with the white space that it takes";
  const auto tokenizer = load_tokenizer(directory_.path());
  for (const std::size_t bytes : {1, 2, 3}) {
    EXPECT_THAT(in_pieces(*tokenizer, "[X] \n [X]] \t[X][X]]", bytes), ElementsAre(7, 8, 7, 8));
    EXPECT_EQ(in_pieces(*tokenizer, "a \n  [X]  b  c \t \n [X]", bytes),
              tokenizer->encode("a \n  [X]  b  c \t \n [X]"));
  }
  write_file(directory_ / "added_tokens.json", R"({"[Y]": 9})");
  write_file(directory_ / "special_tokens_map.json", R"({"eos_token": "<unk>"})");
  EXPECT_THAT(ids("{}", "[Y]<unk>[Y]"), ElementsAre(9, 0, 9));
}

// Such a token may be declared (a <pad> that training added) and never occur.
TEST_F(TokenizerDirectoryTest, ASpecialTokenWithoutARowIsAnErrorOnlyInAText) {
  json config = small_config();
  config["vocab_size"] = 1024;
  write_file(directory_ / "config.json", config.dump());
  configure(R"({"added_tokens_decoder": {"1024": {"content": "<pad>"}}})");
  const auto tokenizer = load_tokenizer(directory_.path());
  EXPECT_NO_THROW((void)tokenizer->encode("pad"));
  EXPECT_THAT(input_error_of([&] { (void)tokenizer->encode("a <pad>"); }),
              AllOf(HasSubstr("\"<pad>\""), HasSubstr("1024")));
}

TEST_F(TokenizerDirectoryTest, WhatIsAskedForAndNotDoneIsRefusedOrSaidByName) {
  const auto error_of = [&](const std::string& text) {
    configure(text);
    return load_error(directory_.path());
  };
  EXPECT_THAT(error_of(R"({"do_lower_case": true})"), HasSubstr("do_lower_case"));
  EXPECT_THAT(error_of(R"({"sp_model_kwargs": {"enable_sampling": true}})"),
              HasSubstr("sp_model_kwargs"));
  EXPECT_EQ(error_of(R"({"sp_model_kwargs": {}})"), "(no InputError)");
  EXPECT_THAT(error_of(R"({"added_tokens_decoder": {"x": {"content": "y"}}})"),
              AllOf(HasSubstr("added_tokens_decoder"), HasSubstr("\"y\"")));
  const auto warnings = [&](const std::string& text) {
    configure(text);
    return load_tokenizer(directory_.path())->warnings();
  };
  EXPECT_THAT(warnings(R"({"tokenizer_class": "LlamaTokenizerFast"})"), IsEmpty());
  EXPECT_THAT(warnings(R"({"tokenizer_class": "MyTokenizer"})"),
              ElementsAre(HasSubstr("\"MyTokenizer\"")));
  EXPECT_THAT(warnings(R"({"auto_map": {"AutoTokenizer": ["own.Own", null]}})"),
              ElementsAre(HasSubstr("auto_map")));
}

// tiny-world's vocabulary as a tokenizer.json.
json file_of(const std::filesystem::path& model) {
  sentencepiece::SentencePieceProcessor processor;
  EXPECT_TRUE(processor.Load(model.string()).ok());
  json vocab = json::object();
  for (int id = 0; id < processor.GetPieceSize(); ++id) vocab[processor.IdToPiece(id)] = id;
  std::vector<std::pair<std::tuple<float, int, int>, json>> ranked;
  for (int id = 0; id < processor.GetPieceSize(); ++id) {
    const std::string& piece = processor.IdToPiece(id);
    if (processor.IsControl(id) || processor.IsByte(id) || processor.IsUnknown(id)) continue;
    for (std::size_t k = code_point_at(piece, 0).bytes; k < piece.size();
         k += code_point_at(piece, k).bytes) {
      const std::string left = piece.substr(0, k), right = piece.substr(k);
      if (!vocab.contains(left) || !vocab.contains(right)) continue;
      ranked.push_back({{-processor.GetScore(id), vocab[left].get<int>(), vocab[right].get<int>()},
                        json::array({left, right})});
    }
  }
  std::ranges::sort(ranked, {}, [](const auto& merge) { return merge.first; });
  json merges = json::array();
  for (const auto& merge : ranked) merges.push_back(merge.second);
  json added = json::array();
  for (int id = 0; id < 3; ++id) {
    added.push_back({{"id", id},
                     {"content", processor.IdToPiece(id)},
                     {"normalized", false},
                     {"special", true}});
  }
  const json bos = {{"SpecialToken", {{"id", "<s>"}}}}, text = {{"Sequence", {{"id", "A"}}}};
  return {{"added_tokens", added},
          {"pre_tokenizer",
           {{"type", "Metaspace"},
            {"replacement", "\u2581"},
            {"prepend_scheme", "always"},
            {"split", false}}},
          {"post_processor", {{"type", "TemplateProcessing"}, {"single", {bos, text}}}},
          {"model",
           {{"type", "BPE"},
            {"fuse_unk", true},
            {"byte_fallback", true},
            {"vocab", vocab},
            {"merges", merges}}}};
}

// What transformers 5 writes for a LlamaTokenizer, with no tokenizer.model.
TEST_F(TokenizerDirectoryTest, TheJsonAloneGivesTheIdsOfTheModel) {
  const auto of_model = load_tokenizer(directory_.path());
  std::filesystem::remove(directory_ / "tokenizer.model");
  write_file(directory_ / "tokenizer.json", file_of(tiny_world() / "tokenizer.model").dump());
  const auto of_json = load_tokenizer(directory_.path());
  EXPECT_THAT(of_json->source(), HasSubstr("tokenizer.json"));
  EXPECT_EQ(of_json->bos(), 1);
  const std::string text = read_bytes(tiny_world() / "test.txt");
  EXPECT_EQ(of_json->encode(text), of_model->encode(text));
  EXPECT_EQ(in_pieces(*of_json, text, 100), of_model->encode(text));
}

TEST_F(TokenizerDirectoryTest, TheJsonBesideTheModelIsReadIfTheyAgree) {
  json object = file_of(tiny_world() / "tokenizer.model");
  write_file(directory_ / "tokenizer.json", object.dump());
  EXPECT_THAT(load_tokenizer(directory_.path())->source(), HasSubstr("tokenizer.json"));
  json& vocab = object["model"]["vocab"];
  std::swap(vocab["a"], vocab["b"]);
  write_file(directory_ / "tokenizer.json", object.dump());
  EXPECT_THAT(load_error(directory_.path()),
              AllOf(HasSubstr("tokenizer.json and "), HasSubstr("tokenizer.model have other"),
                    HasSubstr("token \"a\"")));
}

TEST_F(TokenizerDirectoryTest, TheJsonSaysWhereSpacesGoUnlessTheConfigDoes) {
  const json plain = file_of(tiny_world() / "tokenizer.model");
  const auto ids = [&](const json& patch, const std::string& settings) {
    json object = plain;
    object.merge_patch(patch);
    configure(settings);
    write_file(directory_ / "tokenizer.json", object.dump());
    return load_tokenizer(directory_.path())->encode("box</s>box");
  };
  const auto scheme = [](const char* name) {
    return json{{"pre_tokenizer", {{"prepend_scheme", name}}}};
  };
  const json prepend = {
      {"pre_tokenizer", nullptr},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", "\u2581"}},
          {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "\u2581"}}}}}}};
  const auto each = ids(scheme("always"), "{}"), first = ids(scheme("first"), "{}"),
             never = ids(scheme("never"), "{}");
  EXPECT_NE(each, first);
  EXPECT_NE(first, never);
  EXPECT_EQ(ids(prepend, R"({"legacy": false})"), each) << "the file counts";
  for (const json& file : {scheme("always"), scheme("first"), prepend}) {
    EXPECT_EQ(ids(file, R"({"add_prefix_space": false})"), never);
    EXPECT_EQ(ids(file, R"({"add_prefix_space": true, "legacy": false})"), first);
    EXPECT_EQ(ids(file, R"({"add_prefix_space": true, "legacy": true})"), each);
  }
}

// Small files of the structures of published ones; see make_structures.py.
TEST(TokenizerTest, JsonOfEveryStructureAgreesWithHuggingFace) {
  const std::filesystem::path folder = kGolden / "structures";
  const json recipes = json::parse(read_bytes(folder / "structures.json"));
  const json cases = json::parse(read_bytes(kGolden / "texts.json"));
  for (const auto& [name, recipe] : recipes.items()) {
    json object = json::parse(read_bytes(recipe[0] == "bytes" ? kGolden / "bpe/tokenizer.json"
                                                              : folder / "characters.json"));
    object.merge_patch(recipe[1]);
    const TemporaryFolder directory;
    write_file(directory / "tokenizer.json", object.dump());
    const auto tokenizer = load_tokenizer(directory.path());
    std::ifstream lines(folder / (name + ".txt"));
    int wrong = 0;
    for (const json& text_and_repeat : cases) {
      std::string text, expected;
      for (int i = 0; i < text_and_repeat.at(1).get<int>(); ++i)
        text += text_and_repeat.at(0).get<std::string>();
      ASSERT_TRUE(std::getline(lines, expected)) << name;
      const std::vector<std::int32_t> ids = tokenizer->encode(text);
      // Cut wherever it may be, a text has the same ids.
      if (text.size() < 1000) {
        EXPECT_EQ(in_pieces(*tokenizer, text, 1), ids) << name << ": " << text_and_repeat.dump();
      }
      if (hash_of(ids).substr(8) == expected) continue;
      ADD_FAILURE() << name << ": " << text_and_repeat.dump() << " gives "
                    << (ids.size() < 100 ? json(ids).dump() : "others");
      if (++wrong == 10) break;
    }
  }
}

TEST_F(TokenizerDirectoryTest, WrongConfigIsAnInputErrorThatNamesFileAndKey) {
  const auto error_of = [&](const std::string& text) {
    configure(text);
    return load_error(directory_.path());
  };
  EXPECT_THAT(error_of(R"({"add_bos_token": 1})"),
              HasSubstr("tokenizer_config.json: add_bos_token"));
  EXPECT_THAT(error_of(R"({"bos_token": 1})"), HasSubstr("tokenizer_config.json: bos_token"));
  EXPECT_THAT(error_of(R"({"bos_token": ""})"), HasSubstr("tokenizer_config.json: bos_token"));
  EXPECT_THAT(error_of(R"({"bos_token": "<begin>"})"), HasSubstr("\"<begin>\""));
  EXPECT_THAT(error_of("[]"), HasSubstr("tokenizer_config.json"));
  EXPECT_THAT(error_of("{"), HasSubstr("tokenizer_config.json: line 1"));
}

TEST_F(TokenizerDirectoryTest, MorePiecesThanTheModelHasRowsIsAnInputError) {
  json config = small_config();
  config["vocab_size"] = 1023;
  write_file(directory_ / "config.json", config.dump());
  EXPECT_THAT(load_error(directory_.path()),
              AllOf(HasSubstr("tokenizer.model"), HasSubstr("1024 pieces"), HasSubstr("1023")));
  config["vocab_size"] = 1024;
  write_file(directory_ / "config.json", config.dump());
  EXPECT_EQ(load_tokenizer(directory_.path())->vocabulary(), 1024);
}

TEST_F(TokenizerDirectoryTest, MissingModelIsNamed) {
  std::filesystem::remove(directory_ / "tokenizer.model");
  EXPECT_THAT(load_error(directory_.path()), HasSubstr("tokenizer.json: missing"));
}

TEST_F(TokenizerDirectoryTest, FilesToCarryAlongAreThoseThatExist) {
  configure("{}");
  EXPECT_THAT(tokenizer_files(directory_.path()),
              ElementsAre(directory_ / "tokenizer.model", directory_ / "tokenizer_config.json"));
}

// A damaged model is refused or works; what the library would write to stderr does not appear.
TEST_F(TokenizerDirectoryTest, DamagedModelIsAnInputErrorAndSilent) {
  const std::string valid = read_bytes(directory_ / "tokenizer.model");
  const auto try_bytes = [&](const std::string& bytes) {
    write_file(directory_ / "tokenizer.model", bytes);
    try {
      const auto tokenizer = load_tokenizer(directory_.path());
      (void)tokenizer->encode("The red ball is in the box.\n\t🙂");
      return true;
    } catch (const InputError& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos) << error.what();
      return false;
    }
  };
  testing::internal::CaptureStderr();
  EXPECT_FALSE(try_bytes(""));
  EXPECT_FALSE(try_bytes("hello"));
  EXPECT_FALSE(try_bytes(std::string(10'000, '\xff')));
  EXPECT_FALSE(try_bytes(std::string(10'000, '\0')));
  EXPECT_TRUE(try_bytes(valid));
  for (std::size_t length = 0; length < valid.size(); length += 1 + length / 50) {
    EXPECT_FALSE(try_bytes(valid.substr(0, length))) << length << " bytes";
  }
  Random random(1);
  int refused = 0;
  for (int i = 0; i < 600; ++i) {
    std::string bytes = valid;
    // Half of the changes in the last 600 bytes, where the settings are.
    const std::size_t within = i % 2 == 0 ? bytes.size() : std::min<std::size_t>(600, bytes.size());
    const std::size_t place = bytes.size() - 1 - static_cast<std::size_t>(random.below(within));
    bytes[place] = static_cast<char>(random.below(256));
    if (!try_bytes(bytes)) ++refused;
  }
  EXPECT_GT(refused, 10);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

// Field number and wire type, length, bytes: one length-delimited field of a protocol buffer.
std::string field(int number, const std::string& bytes) {
  std::string text(1, static_cast<char>(number << 3 | 2));
  std::size_t length = bytes.size();
  for (; length >= 0x80; length >>= 7) text += static_cast<char>((length & 0x7f) | 0x80);
  return text + static_cast<char>(length) + bytes;
}

TEST_F(TokenizerDirectoryTest, NormalizationMapIsRefusedBeforeTheLibraryFollowsIt) {
  const std::string valid = read_bytes(directory_ / "tokenizer.model");
  // Normalizer settings (3) and denormalizer settings (5) with a map (2) whose trie points nowhere.
  for (const int settings : {3, 5}) {
    write_file(
        directory_ / "tokenizer.model",
        valid + field(settings, field(2, std::string("\x40\0\0\0", 4) + std::string(100, '\x7f'))));
    EXPECT_THAT(load_error(directory_.path()), HasSubstr("normalizes text"));
  }
}

TEST_F(TokenizerDirectoryTest, OtherKindsOfModelAreRefused) {
  const std::string valid = read_bytes(directory_ / "tokenizer.model");
  write_file(directory_ / "tokenizer.model",
             valid + field(2, std::string("\x18\x01")));  // model_type = unigram
  EXPECT_THAT(load_error(directory_.path()), HasSubstr("not a BPE model"));
}

}  // namespace
}  // namespace roundhouse
