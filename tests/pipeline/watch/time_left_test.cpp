#include "pipeline/watch/time_left.h"

#include <gtest/gtest.h>

namespace roundhouse {
namespace {

nlohmann::json plan() {
  return {{"block rtn-w4", {{"cost", 1}, {"left", 4}}},
          {"block gptq-w4", {{"cost", 20}, {"left", 4}}},
          {"export dense", {{"cost", 4}, {"left", 2}}},
          {"perplexity test", {{"cost", 8}, {"left", 3}}}};
}

nlohmann::json block(const char* recipe, double seconds, int ranks = 1) {
  return {{"event", "block"}, {"recipe", recipe}, {"seconds", seconds}, {"ranks", ranks}};
}

TEST(TimeLeftTest, IsNotKnownBeforeAPieceIsFinished) {
  TimeLeft left(plan());
  EXPECT_FALSE(left.seconds(10));
  left.finished({{"event", "calibration"}, {"seconds", 3}});
  EXPECT_FALSE(left.seconds(10));
}

// 116 s are reckoned, 4 of them of what is done; that took a tenth. By the mean of the units so far 0.4 s would be left.
TEST(TimeLeftTest, DearerRecipesExportsAndEvaluationsCountBeforeTheyWereSeen) {
  TimeLeft left(plan());
  for (int i = 0; i < 4; ++i) left.finished(block("rtn-w4", 0.1));
  const double believed = 0.01 * 116;
  EXPECT_NEAR(left.seconds(0.4).value(),
              (4 * 20 + 2 * 4 + 3 * 8) * (0.4 + believed) / (4 + believed), 1e-9);
}

// A unit that is 40 times slower than it was reckoned, because it is small, does not make the rest 40 times as long: 4 h.
TEST(TimeLeftTest, SmallPiecesTellLittleOfLargeOnes) {
  TimeLeft left(nlohmann::json{{"block rtn-w4", {{"cost", 0.01}, {"left", 4}}},
                               {"block signround-w4", {{"cost", 60}, {"left", 6}}}});
  left.finished(block("rtn-w4", 0.4));
  EXPECT_NEAR(left.seconds(0.4).value(), 360 * (0.4 + 3.6) / (0.01 + 3.6) + 3 * 0.4, 0.01);
  left.finished(block("signround-w4", 120));
  EXPECT_NEAR(left.seconds(120.4).value(), 5 * 120 + 3 * 0.4, 0.01) << "seen";
}

TEST(TimeLeftTest, WhatAKindTookItselfCounts) {
  TimeLeft left(plan());
  for (int i = 0; i < 4; ++i) left.finished(block("rtn-w4", 0.1));
  for (int i = 0; i < 4; ++i) left.finished(block("gptq-w4", 1));
  left.finished({{"event", "export"}, {"format", "dense"}, {"seconds", 6}, {"ranks", 1}});
  left.finished({{"event", "perplexity"}, {"name", "test"}, {"seconds", 2}, {"ranks", 1}});
  EXPECT_NEAR(left.seconds(12.4).value(), 6 + 2 * 2, 1e-9) << "no block is left";
}

TEST(TimeLeftTest, TeamsWorkSideBySide) {
  TimeLeft left(nlohmann::json{{"block a", {{"cost", 1}, {"left", 8}}}});
  // Two teams of three ranks made two blocks each in 2 s.
  for (int i = 0; i < 4; ++i) left.finished(block("a", 1, 3));
  EXPECT_NEAR(left.seconds(2).value(), 2, 1e-9);
}

// From the first block on that is run forward, long before any block of a recipe is made.
TEST(TimeLeftTest, AWalkThroughGradientsIsKnownFromItsFirstBlockOn) {
  TimeLeft left(nlohmann::json{{"gradients 100x512 forward", {{"cost", 1}, {"left", 32}}},
                               {"gradients 100x512", {{"cost", 4}, {"left", 32}}},
                               {"block squeezellm-w3", {{"cost", 8}, {"left", 32}}}});
  double elapsed = 0;
  const auto expect_rest = [&](int forwards, int backwards, int blocks) {
    EXPECT_NEAR(left.seconds(elapsed).value(), forwards + backwards * 4 + blocks * 8, 1e-9);
  };
  const auto piece = [&](nlohmann::json event, double seconds) {
    event["seconds"] = seconds;
    event["ranks"] = 1;
    left.finished(event);
    elapsed += seconds;
  };
  const auto of_walk = [](const char* event) {
    return nlohmann::json{{"event", event}, {"samples", 100}, {"length", 512}};
  };
  piece(of_walk("gradients_forward"), 1);
  expect_rest(31, 32, 32);
  for (int i = 1; i < 32; ++i) piece(of_walk("gradients_forward"), 1);
  expect_rest(0, 32, 32);
  piece(of_walk("gradients_block"), 4);
  expect_rest(0, 31, 32);
  piece({{"event", "block"}, {"recipe", "squeezellm-w3"}}, 8);
  expect_rest(0, 31, 31);
}

}  // namespace
}  // namespace roundhouse
