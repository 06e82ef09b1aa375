#include "base/quote.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

TEST(QuoteTest, TextStaysAsItIs) {
  EXPECT_EQ(in_quotes("model.norm.weight"), "\"model.norm.weight\"");
  EXPECT_EQ(in_quotes("größe 重み 🚂"), "\"größe 重み 🚂\"");
  EXPECT_EQ(in_quotes(""), "\"\"");
}

// A terminal would obey them, or show what is not there.
TEST(QuoteTest, ControlCharactersAndRawBytesAreSpelledOut) {
  EXPECT_EQ(printable("a\nb\tc\r", 100), "a\\nb\\tc\\r");
  EXPECT_EQ(printable("\x1b[31mred\x07", 100), "\\x1b[31mred\\x07");
  EXPECT_EQ(printable(std::string_view("a\0b\x7f", 4), 100), "a\\x00b\\x7f");
  EXPECT_EQ(printable("\xff\xfe ok \xc3", 100), "\\xff\\xfe ok \\xc3");
  EXPECT_EQ(printable("\xc0\xaf\xed\xa0\x80", 100), "\\xc0\\xaf\\xed\\xa0\\x80");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J",
                      100),
            "\\xc2\\x9b2J")
      << "U+009B begins a control sequence";
  EXPECT_EQ(printable("\xe2\x80\xae"
                      "x",
                      100),
            "\\xe2\\x80\\xaex")
      << "U+202E turns the line";
  EXPECT_EQ(printable("\xe2\x80\x9cx\xe2\x80\x9d", 100), "\xe2\x80\x9cx\xe2\x80\x9d");
}

TEST(QuoteTest, LongTextsLoseTheirMiddle) {
  const std::string text = "begin" + std::string(300139, 'x') + "end";
  const std::string line = printable(text, 120);
  EXPECT_LE(line.size(), 120u);
  EXPECT_THAT(line, StartsWith("beginxxx"));
  EXPECT_THAT(line, HasSubstr("x ... 300147 bytes ... x"));
  EXPECT_THAT(line, EndsWith("xend"));
  EXPECT_LE(in_quotes(text).size(), 202u);
  // Cut between characters, also where the bytes do not say where one begins.
  for (std::size_t longest = 60; longest < 70; ++longest) {
    std::string wide;
    for (int i = 0; i < 100; ++i) wide += "重";
    const std::string cut = printable(wide, longest);
    EXPECT_LE(cut.size(), longest);
    EXPECT_EQ(utf8_prefix(cut), cut.size());
    EXPECT_LE(printable(std::string(1000, '\x80'), longest).size(), longest);
    EXPECT_LE(printable(std::string(50, '\x80'), longest).size(), longest);
  }
}

TEST(QuoteTest, AListIsBounded) {
  std::vector<std::string> names(100, std::string(1000, 'n'));
  EXPECT_LE(in_quotes(names).size(), 8u * 204 + 20);
  EXPECT_THAT(in_quotes(names), EndsWith(" and 92 more"));
}

TEST(QuoteTest, NearestWords) {
  const std::vector<std::string> known = {"samples", "shards", "seed", "sequence_length"};
  EXPECT_THAT(nearest_words("smaples", known, 2), ElementsAre("samples"));
  EXPECT_THAT(nearest_words("shard", known, 2), ElementsAre("shards"));
  EXPECT_THAT(nearest_words("recipes", known, 2), IsEmpty());
  EXPECT_THAT(
      nearest_words("model.layers.1.mlp.up.weight",
                    {"model.norm.weight", "model.layers.1.mlp.up_proj.weight",
                     "model.layers.0.mlp.up_proj.weight"},
                    2),
      ElementsAre("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"));
  EXPECT_THAT(nearest_words(std::string(100000, 's'), known, 2), IsEmpty());
}

}  // namespace
}  // namespace roundhouse
