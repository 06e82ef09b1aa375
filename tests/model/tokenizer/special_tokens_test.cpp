#include "model/tokenizer/special_tokens.h"

#include <gtest/gtest.h>

namespace roundhouse {
namespace {

std::string found_in(const SpecialTokens& tokens, std::string_view text, std::size_t from = 0) {
  const auto found = tokens.find(text, 0, from, text.size());
  return found ? found->token->text : "";
}

TEST(SpecialTokensTest, TheLeftmostCountsAndOfThoseTheLongest) {
  SpecialTokens tokens;
  for (const char* name : {"<s>", "<s><s>", "</s>", "s"}) tokens.add({.text = name, .id = 1});
  EXPECT_EQ(found_in(tokens, "a <s><s></s>"), "<s><s>");
  EXPECT_EQ(found_in(tokens, "a <s>"), "<s>");
  EXPECT_EQ(found_in(tokens, "a <s", 0), "s");
  EXPECT_EQ(found_in(tokens, "a <"), "");
}

TEST(SpecialTokensTest, OfTwoWithOneNameTheFirstCounts) {
  SpecialTokens tokens;
  EXPECT_TRUE(tokens.empty());
  tokens.add({.text = "", .id = 5});
  EXPECT_TRUE(tokens.empty());
  tokens.add({.text = "<x>", .id = 7});
  tokens.add({.text = "<x>", .id = 8, .strips_left = true});
  const auto found = tokens.find("  <x>", 0, 0, 5);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->token->id, 7);
  EXPECT_EQ(found->begin, 2u);
}

TEST(SpecialTokensTest, ASingleWordStandsAlone) {
  SpecialTokens tokens;
  tokens.add({.text = "it", .id = 1, .single_word = true});
  EXPECT_EQ(found_in(tokens, "bit, item, \u00e9it, it\u0301, _it"), "");
  const auto found = tokens.find("bit (it) item", 0, 0, 13);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->begin, 5u);
  EXPECT_FALSE(tokens.may_cut('b', 'i')) << "the part behind would begin with it";
  EXPECT_FALSE(tokens.may_cut('t', 'e'));
  EXPECT_TRUE(tokens.may_cut('a', ' '));
}

// What a hostile file can hold: with a search through all for each, this would take hours.
TEST(SpecialTokensTest, ManyOfThemTakeTimeInProportion) {
  SpecialTokens tokens;
  constexpr int kMany = 300'000;
  for (int i = 0; i < kMany; ++i) tokens.add({.text = "<" + std::to_string(i) + ">", .id = i});
  std::string text;
  for (int i = 0; i < kMany; ++i) text += "<";
  EXPECT_EQ(found_in(tokens, text), "");
  text += "<299999>";
  EXPECT_EQ(found_in(tokens, text), "<299999>");
}

}  // namespace
}  // namespace roundhouse
