#include "model/tokenizer.h"

#include <array>
#include <fstream>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"
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

// The files that each kind of tokenizer is in, alone.
TEST(TokenizerTest, BytePairsAgreeWithHuggingFaceFromEitherKindOfFile) {
  for (const std::vector<const char*>& files :
       {std::vector{"vocab.json", "merges.txt"}, std::vector{"tokenizer.json"}}) {
    const TemporaryFolder directory;
    for (const char* file : files)
      std::filesystem::copy_file(kGolden / "bpe" / file, directory / file);
    EXPECT_GE(compare(*load_tokenizer(directory.path()), kGolden / "texts.json",
                      kGolden / "bpe/golden.txt"),
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
  EXPECT_THAT(tokenizer->encode_with_bos(""), ElementsAre(1));
  std::vector<std::int32_t> ids = tokenizer->encode("The box");
  ids.insert(ids.begin(), 1);
  EXPECT_EQ(tokenizer->encode_with_bos("The box"), ids);
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
  EXPECT_THAT(load_tokenizer(directory_.path())->encode_with_bos(""), IsEmpty());
  configure(R"({"bos_token": "</s>"})");
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), 2);
  configure(R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "add_bos_token": true})");
  EXPECT_EQ(load_tokenizer(directory_.path())->bos(), 1);
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
  EXPECT_THAT(load_error(directory_.path()), HasSubstr("tokenizer.model: missing"));
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
