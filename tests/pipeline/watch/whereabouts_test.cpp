#include "pipeline/watch/whereabouts.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace roundhouse {
namespace {

RecipeProgress recipe(const std::string& name, int done, bool in_order = true) {
  RecipeProgress progress{.name = name, .in_order = in_order, .done = std::vector<bool>(6)};
  std::fill_n(progress.done.begin(), done, true);
  return progress;
}

TEST(WhereaboutsTest, StagesFollowEachOther) {
  const auto stages =
      whereabouts({recipe("a", 6), recipe("b", 4), recipe("c", 1), recipe("d", 0)}, 2);
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_EQ(stages[0].recipe, "c");
  EXPECT_EQ(stages[0].block, 1);
  EXPECT_FALSE(stages[0].waits);
  EXPECT_EQ(stages[0].next, "d");
  EXPECT_EQ(stages[1].recipe, "b");
  EXPECT_EQ(stages[1].block, 4);
  EXPECT_FALSE(stages[1].waits);
  EXPECT_EQ(stages[1].next, "c");
}

TEST(WhereaboutsTest, AStageWaitsForBlocksBeforeItsOwn) {
  EXPECT_TRUE(whereabouts({recipe("a", 2)}, 2)[1].waits);
  EXPECT_EQ(whereabouts({recipe("a", 2)}, 2)[1].block, 3);
  EXPECT_FALSE(whereabouts({recipe("a", 2, false)}, 2)[1].waits) << "its blocks stand alone";
}

TEST(WhereaboutsTest, TheLastStageHasWhatIsOutsideTheBlocks) {
  RecipeProgress with_head = recipe("a", 3);
  EXPECT_EQ(whereabouts({with_head}, 2)[1].unit, "block 3");
  with_head.include = {"lm_head"};
  std::fill_n(with_head.done.begin(), 5, true);
  const auto stages = whereabouts({with_head}, 2);
  EXPECT_EQ(stages[0].recipe, "");
  EXPECT_EQ(stages[1].block, 5);
  EXPECT_EQ(stages[1].unit, "head");
}

TEST(WhereaboutsTest, WhatFailedIsPassedOver) {
  RecipeProgress failed = recipe("a", 2);
  failed.failed = true;
  const auto stages = whereabouts({failed, recipe("b", 0)}, 1);
  EXPECT_EQ(stages[0].recipe, "b");
  EXPECT_EQ(stages[0].next, "");
  EXPECT_EQ(whereabouts({failed, recipe("b", 6)}, 1)[0].recipe, "");
}

TEST(WhereaboutsTest, LanesHaveRecipesOfTheirOwn) {
  std::vector<RecipeProgress> recipes = {recipe("all", 6), recipe("a", 4), recipe("b", 1),
                                         recipe("c", 0)};
  recipes[1].lane = recipes[3].lane = 0;
  recipes[2].lane = 1;
  const auto stages = whereabouts(recipes, 1, 2);
  ASSERT_EQ(stages.size(), 2u);
  EXPECT_EQ(stages[0].recipe, "a");
  EXPECT_EQ(stages[0].block, 4);
  EXPECT_EQ(stages[0].next, "c");
  EXPECT_EQ(stages[1].recipe, "b");
  EXPECT_EQ(stages[1].next, "");
  recipes[0] = recipe("all", 4, false);
  EXPECT_EQ(whereabouts(recipes, 1, 2)[0].recipe, "a") << "its half of the blocks is done";
  EXPECT_EQ(whereabouts(recipes, 1, 2)[1].recipe, "all");
}

TEST(WhereaboutsTest, RecipesOfAWaveGoTogether) {
  std::vector<RecipeProgress> recipes = {recipe("a", 3), recipe("b", 3), recipe("alone", 0),
                                         recipe("c", 2)};
  for (const std::size_t r : {0, 1, 3}) recipes[r].wave = 0;
  EXPECT_EQ(whereabouts(recipes, 1)[0].recipe, "c") << "it is behind";
  EXPECT_EQ(whereabouts(recipes, 1)[0].next, "a");
  recipes[0].done[3] = recipes[3].done[2] = true;
  EXPECT_EQ(whereabouts(recipes, 1)[0].recipe, "b");
  EXPECT_EQ(whereabouts(recipes, 1)[0].block, 3);
  EXPECT_EQ(whereabouts(recipes, 1)[0].next, "c");
  for (const std::size_t r : {0, 3}) recipes[r].done.assign(6, true);
  EXPECT_EQ(whereabouts(recipes, 1)[0].recipe, "b");
  EXPECT_EQ(whereabouts(recipes, 1)[0].next, "alone");
}

}  // namespace
}  // namespace roundhouse
