#include "pipeline/run/sealed_json.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "tests/base/temporary_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

class SealedJsonTest : public testing::Test {
 protected:
  std::string why(const std::string& text) {
    write_text_atomically(path_, text);
    const SealedJson read = read_sealed_json(path_, "results/a.json");
    EXPECT_EQ(read.object.has_value(), read.why.empty()) << read.why;
    return read.why;
  }
  TemporaryFolder folder_;
  fs::path path_ = folder_.path() / "a.json";
  nlohmann::json object_ = {{"perplexity", {{"test", 1234.56789012345678}, {"none", nullptr}}},
                            {"name", "ü \" \n"},
                            {"count", 7}};
};

TEST_F(SealedJsonTest, GivesBackWhatWasWritten) {
  write_sealed_json(path_, "results/a.json", object_);
  const SealedJson read = read_sealed_json(path_, "results/a.json");
  ASSERT_TRUE(read.object) << read.why;
  EXPECT_EQ(*read.object, object_);
  const std::string before = read_text_file(path_);
  write_sealed_json(path_, "results/a.json", object_);
  EXPECT_EQ(read_text_file(path_), before) << "equal objects make equal files";
  EXPECT_EQ(read_sealed_json(folder_.path() / "b.json", "b.json").why, "missing");
  EXPECT_EQ(read_sealed_json(folder_.path(), "folder").why, "it is not a file");
}

TEST_F(SealedJsonTest, ACopyUnderAnotherKeyIsDamage) {
  write_sealed_json(path_, "results/a.json", object_);
  EXPECT_EQ(read_sealed_json(path_, "results/b.json").why, "its content does not match its seal");
}

TEST_F(SealedJsonTest, AFigureEditedByHandIsDamage) {
  write_sealed_json(path_, "results/a.json", object_);
  std::string text = read_text_file(path_);
  text.replace(text.find("1234"), 4, "1233");
  EXPECT_EQ(why(text), "its content does not match its seal");
  EXPECT_EQ(why("{\"perplexity\": 1}"), "it has no seal (earlier versions wrote none)");
}

TEST_F(SealedJsonTest, EveryFlippedBitAndEveryCutIsFound) {
  write_sealed_json(path_, "results/a.json", object_);
  const std::string whole = read_text_file(path_);
  for (std::size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string text = whole;
      text[at] = static_cast<char>(text[at] ^ (1 << bit));
      ASSERT_NE(why(text), "") << "bit " << bit << " of byte " << at;
    }
    ASSERT_NE(why(whole.substr(0, at)), "") << "cut to " << at;
  }
  for (const char* more : {" ", "\n", "x", "{}", "\0"}) {
    EXPECT_NE(why(whole + std::string(more, 1)), "");
  }
  EXPECT_NE(why(std::string(whole.size(), '\0')), "");
  EXPECT_EQ(why(whole), "");
}

}  // namespace
}  // namespace roundhouse
